//! A process that works and says what it should not.

use std::io::Write;
use std::os::unix::net::UnixStream;

use image::{Digest, Progress, PullEvent};
use rstest::rstest;

use super::*;
use crate::images::RegistryArguments;

fn digest() -> Digest {
    Digest::of(b"x")
}

fn question(registry: &str) -> Message {
    Message::Credentials { registry: registry.to_owned(), repository: "a".to_owned() }
}

/// What comes of a pull from `registry.test` where the process sends `messages` and then `end`.
fn told(messages: &[Message], end: &[u8]) -> (io::Result<Option<Result<Outcome, Failure>>>, Vec<Answer>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let registry = RegistryArguments::default();
    let task = Task {
        job: Job::Pull("registry.test/a:1".to_owned()),
        store: None,
        registry: &registry,
        registries: vec!["registry.test".to_owned()],
        input: Input::None,
        progress: &(),
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for message in messages {
                // The other side may have had enough.
                let _ = send(&theirs, message);
            }
            let _ = (&theirs).write_all(end);
            let _ = theirs.shutdown(std::net::Shutdown::Write);
        });
        let result = task.talk(&ours);
        drop(ours);
        let mut decoder = Decoder::default();
        let _: io::Result<Option<Request>> = receive(&theirs, &mut decoder);
        let answers = std::iter::from_fn(|| receive(&theirs, &mut decoder).ok().flatten());
        (result, answers.collect())
    })
}

#[rstest]
#[case::another_kind(vec![Message::Done(Done::Pushed(digest()))], &[])]
#[case::a_login(vec![Message::Done(Done::LoggedIn(None))], &[])]
#[case::not_a_reference(vec![Message::Loaded { id: digest(), references: vec!["../..".into()] }], &[])]
#[case::too_many_images(
    (0..2000).map(|_| Message::Loaded { id: digest(), references: Vec::new() }).collect(), &[])]
#[case::too_many_questions((0..1000).map(|_| question("other.test")).collect(), &[])]
#[case::too_long(Vec::new(), &[0xff, 0xff, 0xff, 0x7f, 0])]
#[case::nonsense(Vec::new(), &[4, 0, 0, 0, 99, 99, 99, 99])]
#[case::too_much(Vec::new(), &[1, 0, 0, 0, 0])]
fn invalid_messages_end_it(#[case] messages: Vec<Message>, #[case] end: &[u8]) {
    let (result, _) = told(&messages, end);
    assert_eq!(result.err().map(|error| error.kind()), Some(io::ErrorKind::InvalidData));
}

#[rstest]
#[case::nothing(&[])]
#[case::half_a_message(&[200, 0, 0, 0, 1, 2, 3])]
fn an_end_is_no_result(#[case] end: &[u8]) {
    assert!(matches!(told(&[], end).0, Ok(None)));
    let event = PullEvent::Unpacking { digest: digest() };
    assert!(matches!(told(&[Message::Event(event)], end).0, Ok(None)));
}

#[test]
fn credentials_are_those_of_the_command() {
    let (_, answers) = told(&[question("docker.io")], &[]);
    let expected = "docker.io is not a registry of this command".to_owned();
    assert_eq!(answers, [Err(expected)]);
}

#[test]
fn errors_are_cut_and_bars_bounded() {
    let (result, _) = told(&[Message::Failed("\u{e9}".repeat(100_000))], &[]);
    let Ok(Some(Err(failure))) = result else { panic!("no failure") };
    assert!(failure.into_line().len() <= MAX_TEXT);
    let bars = crate::images::registry::Bars::default();
    for number in 0..5000_u32 {
        bars.event(PullEvent::Exists { digest: Digest::of(&number.to_le_bytes()) });
    }
    assert_eq!(bars.count(), crate::images::registry::MAX_BARS);
}
