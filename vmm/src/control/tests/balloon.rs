//! The balloon through the control socket, in a VM whose guest has no driver for it.

use super::*;
use instance::api::{Balloon, BalloonStatistics, BalloonUpdate};

const MIB: u64 = 1 << 20;

fn amount(client: &mut Client) -> u64 {
    client.get::<Balloon>("/balloon").unwrap().amount_mib
}

#[test]
fn a_balloon_is_given_a_size_up_to_what_the_guest_can_spare() {
    let server = Server::start();
    let mut client = server.client();
    let mut set = |amount_mib| {
        let result = client.send("PATCH", "/balloon", &BalloonUpdate { amount_mib });
        (amount(&mut client), result.map_err(|error| error.to_string()))
    };
    let balloon = server.vm.balloon().unwrap();
    let most = balloon.largest_target() / MIB;
    assert_eq!(set(100), (100, Ok(())));
    assert_eq!(balloon.target(), 100 * MIB);
    // The last of them would be 0 bytes, if it were cut to 64 bits.
    for wrong in [most + 1, u64::MAX, 1 << 44] {
        let said =
            format!("a balloon of {wrong} MiB is too large: this guest can give up {most} MiB at the most");
        assert_eq!(set(wrong), (100, Err(said)));
    }
    assert_eq!((set(most), set(0)), ((most, Ok(())), (0, Ok(()))));
}

#[test]
fn a_guest_that_says_nothing_is_waited_for_and_others_are_answered_meanwhile() {
    let server = Server::start();
    server.client().send("PATCH", "/balloon", &BalloonUpdate { amount_mib: 3 }).unwrap();
    let mut asking = server.connect();
    asking.write_all(b"GET /balloon/statistics HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
    assert!(server.is_well());
    // It has not been answered: there is nothing to read.
    asking.set_nonblocking(true).unwrap();
    assert_eq!(asking.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    asking.set_nonblocking(false).unwrap();
    let mut answer = String::new();
    asking.read_to_string(&mut answer).unwrap();
    let body = answer.split("\r\n\r\n").nth(1).unwrap();
    assert_eq!(
        body, "{\"target_pages\":768,\"actual_pages\":0,\"target_mib\":3,\"actual_mib\":0}",
        "{answer}"
    );
}

#[test]
fn clients_that_ask_and_go_do_not_pile_up() {
    let server = Server::start();
    let request = b"GET /balloon/statistics HTTP/1.1\r\n\r\n";
    // What the thread works on ends when the test says so, so that nothing that waits behind it is done before.
    let (release, released) = std::sync::mpsc::channel::<()>();
    let (begun, has_begun) = std::sync::mpsc::channel();
    let holds_up = move || {
        begun.send(()).unwrap();
        let _ = released.recv();
    };
    assert!(server.background.run(Box::new(holds_up)));
    has_begun.recv_timeout(WATCHDOG).unwrap();
    for _ in 0..crate::background::WAITING {
        server.connect().write_all(request).unwrap();
        // The server has taken the request when it answers a later one.
        assert!(server.is_well());
    }
    assert_eq!(statuses(&server.exchange(request)), [503]);
    // Those whose clients have gone cost no time: there is room again.
    drop(release);
    let start = std::time::Instant::now();
    while server.client().get::<BalloonStatistics>("/balloon/statistics").is_err() {
        assert!(start.elapsed() < WATCHDOG);
    }
}

#[test]
fn a_vm_without_a_balloon_says_so() {
    let server = Server::start_with(VmConfig { balloon: false, ..config() });
    for request in [
        "GET /balloon HTTP/1.1\r\n\r\n",
        "PATCH /balloon HTTP/1.1\r\nContent-Length: 16\r\n\r\n{\"amount_mib\":1}",
        "GET /balloon/statistics HTTP/1.1\r\n\r\n",
    ] {
        let answer = server.exchange(request.as_bytes());
        assert_eq!(statuses(&answer), [400], "{answer}");
        let body = answer.split("\r\n\r\n").nth(1).unwrap();
        let fault: api::Fault = serde_json::from_str(body).unwrap();
        assert_eq!(fault.fault_message, "this VM has no balloon: boot it with --balloon");
    }
}
