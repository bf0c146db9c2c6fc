use std::io::{self, PipeReader};
use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;

use agent_protocol::{Decoder, PORT, Reply, Request, VERSION, encode};
use rstest::rstest;

use super::*;

/// An agent that has one stream, and whose connections are lost.
struct Agent {
    listener: UnixListener,
    sender: Sender,
    receiver: Receiver,
    received: Vec<u8>,
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|number| u8::try_from(number % 251).unwrap()).collect()
}

/// Numbers that are the same in each run.
fn random(state: &mut u64) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    usize::try_from(*state >> 40).unwrap()
}

impl Agent {
    /// A connection, and what the host wants.
    fn accept(&self) -> (UnixStream, u64) {
        let (mut socket, _) = self.listener.accept().unwrap();
        let mut line = [0; 13];
        socket.read_exact(&mut line).unwrap();
        assert_eq!(line, *format!("CONNECT {PORT}\n").as_bytes());
        socket.write_all(b"OK 1\n").unwrap();
        socket.write_all(&encode(&Reply::Hello { version: VERSION }).unwrap()).unwrap();
        let mut decoder = Decoder::default();
        loop {
            let mut bytes = vec![0; decoder.wants().unwrap()];
            socket.read_exact(&mut bytes).unwrap();
            decoder.push(&bytes);
            if let Some(request) = decoder.take::<Request>().unwrap() {
                let Request::Attach { position, .. } = request else { panic!("{request:?}") };
                return (socket, position);
            }
        }
    }

    /// Sends `sent` as an output, over connections that are cut anywhere.
    fn send(mut self, sent: &[u8], cut_after: usize) {
        let (mut rest, mut state) = (sent, 1);
        loop {
            let (mut socket, position) = self.accept();
            self.sender.resume(position).unwrap();
            let left = cut_after + random(&mut state) % cut_after;
            socket.write_all(&encode(&Reply::Attached { position }).unwrap()).unwrap();
            socket.set_nonblocking(true).unwrap();
            if self.send_some(&mut socket, &mut rest, left) {
                // Until the host has read the end.
                socket.set_nonblocking(false).unwrap();
                let _ = io::copy(&mut socket, &mut io::sink());
                return;
            }
        }
    }

    /// Sends up to about `left` bytes; whether that was all.
    fn send_some(&mut self, socket: &mut UnixStream, rest: &mut &[u8], mut left: usize) -> bool {
        while left > 0 {
            if self.sender.has_room() {
                let space = self.sender.space();
                let (here, others) = rest.split_at(space.len().min(rest.len()));
                space[..here.len()].copy_from_slice(here);
                self.sender.fill(here.len());
                *rest = others;
                if others.is_empty() {
                    self.sender.end();
                }
            }
            let mut fds = [PollFd::new(&*socket, PollFlags::IN | PollFlags::OUT)];
            poll(&mut fds, None).unwrap();
            let mut bytes = [0; 64];
            if let Ok(count) = socket.read(&mut bytes) {
                self.sender.acknowledge(&bytes[..count]).unwrap();
            }
            if let Ok(count) = socket.write_vectored(&self.sender.to_send()) {
                self.sender.sent(count);
                left = left.saturating_sub(count);
            }
            if self.sender.is_finished() {
                return true;
            }
        }
        false
    }

    /// Receives input to its end, over connections that are cut anywhere.
    fn receive(mut self, cut_after: usize) -> Vec<u8> {
        let mut state = 1;
        loop {
            let (mut socket, _) = self.accept();
            self.receiver.resume();
            let position = self.receiver.position();
            socket.write_all(&encode(&Reply::Attached { position }).unwrap()).unwrap();
            let mut left = cut_after + random(&mut state) % cut_after;
            let mut bytes = vec![0; 50_000];
            while left > 0 {
                let wanted = bytes.len().min(left);
                let count = socket.read(&mut bytes[..wanted]).unwrap();
                let received = &mut self.received;
                let take = |bytes: &[u8]| {
                    received.extend_from_slice(bytes);
                    Ok::<_, StreamError>(())
                };
                self.receiver.receive(&bytes[..count], take).unwrap();
                if self.receiver.has_ended() {
                    return self.received;
                }
                if let Some(acknowledgement) = self.receiver.acknowledgement() {
                    socket.write_all(&acknowledgement).unwrap();
                }
                left -= count;
            }
        }
    }
}

/// An agent on a thread of its own, and where its stream is.
fn agent<T: Send + 'static>(
    directory: &tempfile::TempDir,
    stream: Stream,
    work: impl FnOnce(Agent) -> T + Send + 'static,
) -> (JoinHandle<T>, Place) {
    let path = directory.path().join("vsock.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let agent =
        Agent { listener, sender: Sender::default(), receiver: Receiver::default(), received: Vec::new() };
    (std::thread::spawn(move || work(agent)), Place { path, id: "c".into(), stream })
}

#[rstest]
#[case(0, 1)]
#[case(10, 3)]
#[case(2_000_000, 70_000)]
#[case(2_000_000, usize::MAX / 2)]
fn an_output_comes_whole_over_connections_that_are_lost(#[case] count: usize, #[case] cut_after: usize) {
    let directory = tempfile::tempdir().unwrap();
    let sent = bytes(count);
    let (agent, place) = agent(&directory, Stream::Stdout, move |agent| agent.send(&bytes(count), cut_after));
    let first = Connection::open(&place.path).unwrap();
    let mut received = Vec::new();
    pass_output(first, &place, &mut received).unwrap();
    agent.join().unwrap();
    assert!(received == sent, "{} of {}", received.len(), sent.len());
}

// The length of a piece alone has four bytes.
#[rstest]
#[case(0, 4)]
#[case(10, 3)]
#[case(2_000_000, 70_000)]
#[case(2_000_000, usize::MAX / 2)]
fn input_comes_whole_over_connections_that_are_lost(#[case] count: usize, #[case] cut_after: usize) {
    let directory = tempfile::tempdir().unwrap();
    let (agent, place) = agent(&directory, Stream::Stdin, move |agent| agent.receive(cut_after));
    let first = Connection::open(&place.path).unwrap();
    let (source, mut writer): (PipeReader, _) = io::pipe().unwrap();
    let typing = std::thread::spawn(move || writer.write_all(&bytes(count)));
    pass_input(first, &place, &source);
    typing.join().unwrap().unwrap();
    let received = agent.join().unwrap();
    assert!(received == bytes(count), "{} of {count}", received.len());
}

#[test]
fn the_end_of_the_vm_is_that_of_the_stream() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vsock.sock");
    let place_path = path.clone();
    let (agent, place) = agent(&directory, Stream::Stdout, move |agent| {
        let (mut socket, _) = agent.accept();
        std::fs::remove_file(&place_path).unwrap();
        socket.write_all(&encode(&Reply::Attached { position: 0 }).unwrap()).unwrap();
        socket.write_all(b"\x02\0\0\0hi").unwrap();
    });
    let first = Connection::open(&path).unwrap();
    let mut received = Vec::new();
    pass_output(first, &place, &mut received).unwrap();
    agent.join().unwrap();
    assert_eq!(received, b"hi");
}
