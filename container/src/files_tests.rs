use std::os::unix::net::UnixListener;
use std::thread::{self, JoinHandle};

use agent_protocol::{Decoder, OLDEST, VERSION, encode};
use rstest::rstest;

use super::*;
use crate::machine::VSOCK;

/// An agent that takes one request and then does what `answer` does.
struct Fake {
    directory: tempfile::TempDir,
    agent: JoinHandle<()>,
}

impl Fake {
    fn new(version: u32, answer: impl FnOnce(UnixStream) + Send + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join(VSOCK)).unwrap();
        let agent = thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut line = Vec::new();
            while line.last() != Some(&b'\n') {
                let mut byte = [0];
                socket.read_exact(&mut byte).unwrap();
                line.extend(byte);
            }
            socket.write_all(b"OK 5\n").unwrap();
            socket.write_all(&encode(&Reply::Hello { version }).unwrap()).unwrap();
            let mut decoder = Decoder::default();
            while decoder.take::<Request>().unwrap().is_none() {
                let mut bytes = vec![0; decoder.wants().unwrap()];
                match socket.read(&mut bytes) {
                    Ok(count @ 1..) => decoder.push(&bytes[..count]),
                    _ => return,
                }
            }
            answer(socket);
        });
        Self { directory, agent }
    }

    fn saying(messages: Vec<Vec<u8>>) -> Self {
        Self::new(VERSION, move |mut socket| drop(socket.write_all(&messages.concat())))
    }

    fn files(&self) -> Files {
        Files::of(self.directory.path(), "c").unwrap()
    }
}

fn said(reply: &Reply) -> Vec<u8> {
    encode(reply).unwrap()
}

fn failed(message: &str) -> Vec<u8> {
    said(&Reply::Failed(Failure { kind: FailureKind::Other, message: message.into() }))
}

fn pieces(bytes: &[u8]) -> Vec<u8> {
    let mut writer = PieceWriter::new(Vec::new());
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

/// All of a stream, or what is said of it.
fn received(stream: Result<Incoming, FilesError>) -> Result<Vec<u8>, String> {
    let line = |error: FilesError| devices::log::chain(&error);
    let mut stream = stream.map_err(line)?;
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    stream.finish().map_err(line)?;
    Ok(bytes)
}

#[test]
fn a_stream_and_its_end_are_received() {
    let fake = Fake::saying(vec![said(&Reply::Started), pieces(b"changes"), said(&Reply::Done)]);
    assert_eq!(received(fake.files().changes()).unwrap(), b"changes");
    fake.agent.join().unwrap();
}

#[rstest]
#[case::failure_at_first(vec![failed("no")], "no")]
#[case::failure_later(vec![said(&Reply::Started), pieces(b"x"), failed("disk")], "disk")]
#[case::end_at_first(vec![], "the copy ended early")]
#[case::end_in_a_stream(vec![said(&Reply::Started), 9_u32.to_le_bytes().to_vec()], "the copy ended early")]
#[case::end_behind_a_stream(vec![said(&Reply::Started), pieces(b"x")], "the copy ended early")]
#[case::other_message(vec![said(&Reply::Done)], "unexpected message")]
#[case::other_message_behind(vec![said(&Reply::Started), pieces(b""), said(&Reply::Started)], "unexpected message")]
#[case::long_piece(vec![said(&Reply::Started), vec![0xff; 4]], "4294967295 bytes")]
#[case::long_message(vec![vec![0xff; 64]], "invalid message")]
#[case::noise(vec![vec![1, 0, 0, 0, 0x7f]], "invalid message")]
fn an_agent_that_sends_nonsense_gets_a_line(#[case] messages: Vec<Vec<u8>>, #[case] says: &str) {
    let fake = Fake::saying(messages);
    let line = received(fake.files().root()).unwrap_err();
    assert!(line.contains(says) && !line.contains('\n'), "{line}");
    fake.agent.join().unwrap();
}

#[test]
fn an_answer_that_comes_byte_by_byte_is_waited_for_no_longer() {
    let limit = Duration::from_millis(100);
    let (near, mut far) = UnixStream::pair().unwrap();
    let message = failed(&"x".repeat(1 << 10));
    let agent = thread::spawn(move || {
        for byte in message {
            // The time between two bytes is what is tested: less than the limit, all together much more.
            thread::sleep(limit / 10);
            if far.write_all(&[byte]).is_err() {
                return true;
            }
        }
        false
    });
    let line = devices::log::chain(&last_answer(near, limit).unwrap_err());
    assert!(line.contains("did not answer within"), "{line}");
    assert!(agent.join().unwrap(), "all of it was waited for");
}

#[test]
fn a_stream_without_end_is_not_read_to_its_end() {
    let fake = Fake::new(VERSION, |mut socket| {
        socket.write_all(&said(&Reply::Started)).unwrap();
        let piece = [&4_u32.to_le_bytes()[..], b"more"].concat();
        while socket.write_all(&piece).is_ok() {}
    });
    let mut stream = fake.files().changes().unwrap();
    stream.read_exact(&mut [0; 10]).unwrap();
    let line = devices::log::chain(&stream.finish().unwrap_err());
    assert!(line.contains("more of a stream"), "{line}");
    fake.agent.join().unwrap();
}

#[test]
fn an_agent_that_takes_no_more_is_not_waited_for() {
    let fake = Fake::new(VERSION, |mut socket| {
        socket.write_all(&said(&Reply::Started)).unwrap();
        socket.read_exact(&mut [0; 1000]).unwrap();
        socket.write_all(&failed("no space left on device")).unwrap();
        // What still comes is taken, as the agent does.
        let _ = io::copy(&mut socket, &mut io::sink());
    });
    let mut out = fake.files().write(b"/", false).unwrap();
    let mut written = 0_u64;
    let error = loop {
        match out.write_all(&[1; 64 << 10]) {
            Ok(()) => written += 64 << 10,
            Err(error) => break error,
        }
        assert!(written < 1 << 30, "it goes on without end");
    };
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    assert_eq!(out.finish().unwrap_err().to_string(), "no space left on device");
    fake.agent.join().unwrap();
}

#[test]
fn a_path_with_nothing_at_it_is_no_error() {
    let kind = FailureKind::NotFound;
    let fake = Fake::saying(vec![said(&Reply::Failed(Failure { kind, message: "none".into() }))]);
    assert_eq!(fake.files().look(b"/x").unwrap(), None);
    let info = FileInfo { mode: 0o100_644, size: 3, ..FileInfo::default() };
    let fake = Fake::saying(vec![said(&Reply::Found(info.clone()))]);
    assert_eq!(fake.files().look(b"/x").unwrap(), Some(info));
}

#[test]
fn an_agent_of_an_earlier_version_is_asked_nothing() {
    let fake = Fake::new(OLDEST, |_| panic!("it was asked"));
    assert!(matches!(fake.files().look(b"/"), Err(FilesError::TooOld)));
    fake.agent.join().unwrap();
    let none = tempfile::tempdir().unwrap();
    assert!(matches!(Files::of(none.path(), "c"), Err(FilesError::NoDevice(_))));
}
