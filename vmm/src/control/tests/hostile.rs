//! Clients that mean no good, or are broken.

use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

use super::*;

const GOOD: &[u8] =
    b"PATCH /vm HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 18\r\n\r\n{\"state\":\"Paused\"}";

/// Good requests with bytes changed, cut out, doubled, and noise.
fn malformed(random: &mut TestRng) -> Vec<u8> {
    let mut request = GOOD.to_vec();
    if random.random_ratio(1, 8) {
        request = (0..random.random_range(0..200)).map(|_| random.random()).collect();
    }
    for _ in 0..random.random_range(1..6_usize) {
        let at = random.random_range(0..=request.len());
        match random.random_range(0..4_u8) {
            0 => request.truncate(at),
            1 => request.insert(at, random.random()),
            2 => drop(request.splice(at.., GOOD.iter().copied())),
            _ => {
                if let Some(byte) = request.get_mut(at) {
                    *byte = random.random();
                }
            }
        }
    }
    request
}

#[test]
fn ten_thousand_malformed_requests_are_survived() {
    let server = Server::start();
    let mut random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut refused = 0;
    for _ in 0..10_000 {
        let request = malformed(&mut random);
        let answer = server.exchange(&request);
        // Each answer is one of ours, and whole.
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 "), "{request:?}: {answer}");
        refused += usize::from(statuses(&answer).iter().any(|status| *status >= 400));
    }
    assert!(refused > 3_000, "{refused}");
    assert!(server.is_well());
    assert_eq!((server.presses.load(Ordering::SeqCst), server.exit.reason()), (0, None));
}

#[test]
fn a_client_that_goes_in_the_middle_of_anything_is_forgotten() {
    let server = Server::start();
    for length in 0..GOOD.len() {
        let mut stream = server.connect();
        stream.write_all(&GOOD[..length]).unwrap();
    }
    // The answer is not read.
    for _ in 0..100 {
        server.connect().write_all(b"GET /openapi.json HTTP/1.1\r\n\r\n").unwrap();
    }
    assert!(server.is_well());
}

#[test]
fn clients_that_say_nothing_give_way_to_those_that_do() {
    let server = Server::start();
    let mut silent: Vec<_> = (0..100).map(|_| server.connect()).collect();
    assert!(server.is_well());
    // The first have been closed to make room.
    assert_eq!(silent[0].read(&mut [0]).unwrap_or(0), 0);
    // So do those that began to say something and never end.
    for stream in &mut silent {
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nX: ");
    }
    assert!(server.is_well());
}

#[test]
fn a_head_without_end_is_cut_off() {
    let server = Server::start();
    let endless = [b"GET / HTTP/1.1\r\nX: ".as_slice(), &vec![b'x'; 1 << 20]].concat();
    assert_eq!(statuses(&server.exchange(&endless)), [431]);
    let many = ["GET / HTTP/1.1\r\n".to_owned(), "A: b\r\n".repeat(65), "\r\n".into()].concat();
    assert_eq!(statuses(&server.exchange(many.as_bytes())), [431]);
    assert!(server.is_well());
}

/// Who asks and does not read the answers is not asked for more until it does: its requests wait in its own socket.
#[test]
fn a_client_that_does_not_read_delays_no_other_and_fills_no_memory() {
    let server = Server::start();
    let mut greedy = server.connect();
    greedy.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut sent = 0_usize;
    while let Ok(length) = greedy.write(&b"GET /openapi.json HTTP/1.1\r\n\r\n".repeat(100)) {
        sent += length;
        assert!(sent < 64 << 20, "the server takes it all");
    }
    assert!(server.is_well());
    // What it had asked for is still there for it.
    let mut answer = vec![0; 1 << 20];
    greedy.read_exact(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200 OK"));
}

#[test]
fn requests_are_read_the_same_however_they_are_cut() {
    let mut runner = TestRunner::new(ProptestConfig::with_cases(64));
    let server = Server::start();
    runner
        .run(&proptest::collection::vec(1_usize..40, 1..8), |cuts| {
            let mut stream = server.connect();
            let mut rest =
                b"GET / HTTP/1.1\r\nA: b\r\n\r\nGET /version HTTP/1.1\r\nConnection: close\r\n\r\n"
                    .as_slice();
            for cut in cuts {
                let (part, more) = rest.split_at(cut.min(rest.len()));
                stream.write_all(part).unwrap();
                rest = more;
            }
            stream.write_all(rest).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            prop_assert_eq!(statuses(&answer), [200, 200]);
            Ok(())
        })
        .unwrap();
}
