//! Those who are attached, against a keeper without a VM.

use std::io::{Read, Write};
use std::sync::mpsc::channel;
use std::thread;

use super::*;

const TERMINAL: Console = Console { has_terminal: true, has_input: true, input_once: true };
const PIPES: Console = Console { has_terminal: false, has_input: true, input_once: true };

struct Attached {
    socket: UnixStream,
    decoder: Decoder,
}

impl Attached {
    fn new(directory: &Path) -> Self {
        let mut attached =
            Self { socket: UnixStream::connect(socket(directory)).unwrap(), decoder: Decoder::default() };
        attached.socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert!(matches!(attached.next(), Some(FromKeeper::Hello { version: VERSION, .. })));
        attached
    }

    fn next(&mut self) -> Option<FromKeeper> {
        let mut bytes = [0; 4096];
        loop {
            if let Some(message) = self.decoder.take().unwrap() {
                return Some(message);
            }
            match self.socket.read(&mut bytes).unwrap() {
                0 => return None,
                count => self.decoder.push(&bytes[..count]),
            }
        }
    }

    fn say(&mut self, message: &ToKeeper) {
        self.socket.write_all(&encode(message).unwrap()).unwrap();
    }
}

fn keeper(directory: &Path, console: Console) -> (Arc<Attachments>, UnixStream) {
    let (attachments, source) = Attachments::open(directory, console, None, Box::new(|_| ())).unwrap();
    let source = source.unwrap();
    source.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    (attachments, source)
}

#[test]
fn output_goes_to_all_and_input_comes_from_all() {
    let directory = tempfile::tempdir().unwrap();
    let (sizes, size) = channel();
    let resize = Box::new(move |size| sizes.send(size).unwrap());
    let (attachments, source) = Attachments::open(directory.path(), TERMINAL, None, resize).unwrap();
    let mut source = source.unwrap();
    let mut both = [Attached::new(directory.path()), Attached::new(directory.path())];
    attachments.pass_output(Stream::Stdout, b"out");
    attachments.pass_output(Stream::Stderr, b"err");
    attachments.finish(7, "why");
    for attached in &mut both {
        assert_eq!(attached.next(), Some(FromKeeper::Output(b"out".to_vec())));
        assert_eq!(attached.next(), Some(FromKeeper::Errors(b"err".to_vec())));
        assert_eq!(attached.next(), Some(FromKeeper::Ended { code: 7, text: "why".into() }));
        attached.say(&ToKeeper::Input(b"in".to_vec()));
        // A terminal does not end.
        attached.say(&ToKeeper::InputEnd);
        let mut bytes = [0; 2];
        source.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"in");
    }
    both[1].say(&ToKeeper::Resize(Size { rows: 5, columns: 6 }));
    assert_eq!(size.recv_timeout(Duration::from_secs(20)).unwrap(), Size { rows: 5, columns: 6 });
}

#[test]
fn input_that_is_had_once_ends_with_the_one_who_gave_it() {
    let directory = tempfile::tempdir().unwrap();
    let (_attachments, mut source) = keeper(directory.path(), PIPES);
    // One that only looks ends nothing.
    drop(Attached::new(directory.path()));
    let mut attached = Attached::new(directory.path());
    attached.say(&ToKeeper::Input(b"all".to_vec()));
    drop(attached);
    let mut text = String::new();
    source.read_to_string(&mut text).unwrap();
    assert_eq!(text, "all");
}

#[test]
fn one_who_does_not_read_is_waited_for_until_the_container_has_ended() {
    let directory = tempfile::tempdir().unwrap();
    let (attachments, _source) = keeper(directory.path(), PIPES);
    let silent = Attached::new(directory.path());
    let (done, has_done) = channel();
    let writing = attachments.clone();
    let writer = thread::spawn(move || {
        for _ in 0..100 {
            writing.pass_output(Stream::Stdout, &[b'x'; 64 << 10]);
        }
        done.send(()).unwrap();
    });
    assert!(has_done.recv_timeout(Duration::from_millis(300)).is_err(), "nobody read it");
    attachments.ending();
    has_done.recv_timeout(LAST_WORDS * 3).unwrap();
    writer.join().unwrap();
    drop(silent);
}

#[test]
fn one_who_goes_while_it_is_waited_for_holds_up_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let (attachments, _source) = keeper(directory.path(), PIPES);
    let silent = Attached::new(directory.path());
    let writer = thread::spawn(move || attachments.pass_output(Stream::Stdout, &vec![b'x'; 8 << 20]));
    drop(silent);
    writer.join().unwrap();
}

#[test]
fn nonsense_ends_a_connection_and_many_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (attachments, _source) = keeper(directory.path(), PIPES);
    let mut attached = Attached::new(directory.path());
    attached.socket.write_all(&[0xff; 64]).unwrap();
    attachments.pass_output(Stream::Stdout, b"x");
    while attached.next().is_some() {}
    let all: Vec<_> = (0..MAX_CLIENTS - 1).map(|_| Attached::new(directory.path())).collect();
    let mut more: Vec<_> = (0..3).map(|_| UnixStream::connect(socket(directory.path())).unwrap()).collect();
    let mut is_refused = |socket: &mut UnixStream| {
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket.read(&mut [0; 64]).unwrap() == 0
    };
    let refused: Vec<_> = more.iter_mut().map(&mut is_refused).collect();
    assert_eq!(refused, [false, true, true]);
    drop(all);
}
