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

const FULL: FromKeeper = FromKeeper::Full { clients: MAX_CLIENTS };

impl Attached {
    fn connect(directory: &Path) -> Self {
        let attached =
            Self { socket: UnixStream::connect(socket(directory)).unwrap(), decoder: Decoder::default() };
        attached.socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        attached
    }

    fn new(directory: &Path) -> Self {
        let mut attached = Self::connect(directory);
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
    assert!(has_done.recv_timeout(Duration::from_millis(300)).is_err(), "no client has read it");
    attachments.ending();
    has_done.recv_timeout(LAST_WORDS * 3).unwrap();
    writer.join().unwrap();
    drop(silent);
}

#[test]
fn one_that_goes_while_it_is_waited_for_holds_up_no_other() {
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
    // The place of the one above may not be free yet.
    let mut more: Vec<_> = (0..3).map(|_| Attached::connect(directory.path())).collect();
    let refused: Vec<_> = more.iter_mut().map(|attached| attached.next().unwrap() == FULL).collect();
    assert_eq!(refused[1..], [true, true]);
    assert_eq!(more[2].next(), None);
    drop(all);
}

/// Sends input until no more is taken; how many bytes of input are in whole messages.
fn fill(attached: &mut Attached) -> usize {
    let message = encode(&ToKeeper::Input(vec![b'x'; 10_000])).unwrap();
    attached.socket.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    (0..1000).take_while(|_| attached.socket.write_all(&message).is_ok()).count() * 10_000
}

#[test]
fn input_that_waits_outlives_its_client_and_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let (attachments, mut source) = keeper(directory.path(), PIPES);
    let mut attached = Attached::new(directory.path());
    let sent = fill(&mut attached);
    drop(attached);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !lock(&attachments.clients).is_empty() {
        assert!(Instant::now() < deadline, "its place is not free");
        thread::yield_now();
    }
    let mut bytes = Vec::new();
    source.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len(), sent);
}

#[test]
fn clients_whose_input_waits_take_no_place_once_they_have_gone() {
    let directory = tempfile::tempdir().unwrap();
    let (attachments, mut source) = keeper(directory.path(), TERMINAL);
    let mut first = Attached::new(directory.path());
    fill(&mut first);
    let mut all: Vec<_> = (1..MAX_CLIENTS).map(|_| Attached::new(directory.path())).collect();
    for attached in &mut all {
        // The container's side is full: it waits for each of them.
        attached.say(&ToKeeper::Input(vec![b'y'; 10_000]));
    }
    assert_eq!(Attached::connect(directory.path()).next(), Some(FULL));
    drop((first, all));
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut next = loop {
        let mut attached = Attached::connect(directory.path());
        if attached.next() != Some(FULL) {
            break attached;
        }
        assert!(Instant::now() < deadline, "no place is free");
    };
    attachments.pass_output(Stream::Stdout, b"out");
    assert_eq!(next.next(), Some(FromKeeper::Output(b"out".to_vec())));
    assert!(attachments.remainders.load(Ordering::SeqCst) <= MAX_REMAINDERS);
    // Once it reads, what the first few have left comes, and then the input of the next.
    next.say(&ToKeeper::Input(b"z".to_vec()));
    let mut bytes = vec![0; 64 << 10];
    loop {
        let count = source.read(&mut bytes).unwrap();
        if bytes[..count].contains(&b'z') {
            break;
        }
    }
}
