//! How connections begin and end.

use std::io::{Read, Write};
use std::net::Shutdown;

use rstest::rstest;

use super::guest::{expect_end, header, pattern, read_exactly};
use super::*;

#[test]
pub(super) fn a_connection_of_the_guest_reaches_the_socket_of_its_port() {
    let mut guest = Guest::new();
    let mut host = guest.connect(80, 1025);
    guest.send(Header { op: op::RW, ..header(80, 1025) }, b"from the guest");
    assert_eq!(read_exactly(&mut host, 14), b"from the guest");
    host.write_all(b"from the host").unwrap();
    let (rw, payload) = guest.receive();
    assert_eq!((rw.op, rw.src_port, rw.dst_port), (op::RW, 80, 1025));
    assert_eq!((payload.as_slice(), rw.fwd_cnt), (b"from the host".as_slice(), 14));
}

#[test]
pub(super) fn a_port_without_a_listener_refuses() {
    let mut guest = Guest::new();
    guest.send(Header { op: op::REQUEST, ..header(80, 1025) }, b"");
    guest.expect(op::RST, 0);
    // Somebody was there once.
    drop(guest.listen(81));
    guest.send(Header { op: op::REQUEST, ..header(81, 1025) }, b"");
    guest.expect(op::RST, 0);
    assert_eq!(guest.metric("refused_connections"), 2);
    assert_eq!(guest.metric("opened_connections"), 0);
}

#[test]
pub(super) fn a_process_of_the_host_is_told_the_port_and_then_talks_to_the_guest() {
    let mut guest = Guest::new();
    // What is behind the line is for the guest.
    let mut host = guest.dial("CONNECT 52\nearly");
    let request = guest.expect(op::REQUEST, 0);
    assert_eq!(request.dst_port, 52);
    guest.send(Header { op: op::RESPONSE, ..header(request.src_port, 52) }, b"");
    guest.send(Header { op: op::RW, ..header(request.src_port, 52) }, b"hi");
    assert_eq!(guest.read(5), b"early");
    let answer = format!("OK {}\nhi", request.src_port);
    assert_eq!(read_exactly(&mut host, answer.len()), answer.as_bytes());
}

#[test]
pub(super) fn a_process_that_the_guest_refuses_is_left() {
    let mut guest = Guest::new();
    let mut host = guest.dial("CONNECT 52\n");
    let request = guest.expect(op::REQUEST, 0);
    guest.send(Header { op: op::RST, ..header(request.src_port, 52) }, b"");
    expect_end(&mut host);
}

#[test]
pub(super) fn processes_get_ports_of_their_own() {
    let mut guest = Guest::new();
    let _hosts = [guest.dial("CONNECT 52\n"), guest.dial("CONNECT 52\n")];
    let ports = [guest.expect(op::REQUEST, 0).src_port, guest.expect(op::REQUEST, 0).src_port];
    assert_ne!(ports[0], ports[1]);
}

#[rstest]
#[case("HELLO\n")]
#[case("CONNECT a\n")]
#[case("CONNECT 1                                             ")]
fn a_process_that_does_not_know_the_line_is_left(#[case] line: &str) {
    let guest = Guest::new();
    let mut host = guest.dial(line);
    // Where more was written than is read, the end is an error.
    assert!(matches!(host.read(&mut [0]), Ok(0) | Err(_)));
    assert_eq!(guest.metric("refused_connections"), 1);
}

#[test]
pub(super) fn a_process_that_sends_nothing_times_out_and_delays_no_other() {
    let mut guest = Guest::new();
    let mut silent = guest.dial("CONN");
    let _other = guest.dial("CONNECT 52\n");
    guest.expect(op::REQUEST, 0);
    let before = std::time::Instant::now();
    // It had written something, which was not read.
    assert!(matches!(silent.read(&mut [0]), Ok(0) | Err(_)));
    assert!(before.elapsed().as_secs() < 8);
}

#[test]
pub(super) fn many_silent_processes_give_way_to_one_that_speaks() {
    let mut guest = Guest::with_sockets(300);
    guest.give_buffers();
    let mut silent: Vec<_> = (0..280).map(|_| guest.dial("")).collect();
    let _speaks = guest.dial("CONNECT 52\n");
    guest.expect(op::REQUEST, 0);
    expect_end(&mut silent[0]);
}

#[test]
pub(super) fn each_direction_ends_by_itself() {
    let mut guest = Guest::new();
    let mut host = guest.connect(80, 1025);
    guest.send(Header { op: op::RW, ..header(80, 1025) }, b"last words");
    guest.send(Header { op: op::SHUTDOWN, flags: shutdown::SEND, ..header(80, 1025) }, b"");
    assert_eq!(read_exactly(&mut host, 10), b"last words");
    expect_end(&mut host);
    host.write_all(&pattern(9000)).unwrap();
    assert_eq!(guest.read(9000), pattern(9000));
    drop(host);
    guest.expect(op::SHUTDOWN, shutdown::BOTH);
    guest.send(Header { op: op::RST, ..header(80, 1025) }, b"");
    guest.expect_silence();
}

#[test]
pub(super) fn the_host_ends_its_direction_and_reads_on() {
    let mut guest = Guest::new();
    let mut host = guest.connect(80, 1025);
    host.write_all(b"question").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.read(8), b"question");
    guest.expect(op::SHUTDOWN, shutdown::SEND);
    guest.send(Header { op: op::RW, ..header(80, 1025) }, b"answer");
    assert_eq!(read_exactly(&mut host, 6), b"answer");
    guest.send(Header { op: op::SHUTDOWN, flags: shutdown::BOTH, ..header(80, 1025) }, b"");
    guest.expect(op::RST, 0);
    expect_end(&mut host);
}

#[test]
pub(super) fn a_host_that_reads_no_more_is_known_to_the_guest() {
    let mut guest = Guest::new();
    let mut host = guest.connect(80, 1025);
    host.shutdown(Shutdown::Read).unwrap();
    guest.send(Header { op: op::RW, ..header(80, 1025) }, b"unread");
    guest.expect(op::SHUTDOWN, shutdown::RECEIVE);
    host.write_all(b"still here").unwrap();
    assert_eq!(guest.read(10), b"still here");
}

#[test]
pub(super) fn a_guest_that_reads_no_more_is_known_to_the_host() {
    let mut guest = Guest::new();
    let mut host = guest.connect(80, 1025);
    guest.send(Header { op: op::SHUTDOWN, flags: shutdown::RECEIVE, ..header(80, 1025) }, b"");
    assert!(host.write_all(b"unread").is_err());
    guest.send(Header { op: op::RW, ..header(80, 1025) }, b"still here");
    assert_eq!(read_exactly(&mut host, 10), b"still here");
}

#[test]
pub(super) fn what_was_sent_before_the_guest_closed_arrives() {
    let mut guest = Guest::new();
    let mut host = guest.connect(80, 1025);
    let bytes = pattern(200_000);
    for piece in bytes.chunks(50_000) {
        guest.send(Header { op: op::RW, ..header(80, 1025) }, piece);
    }
    guest.send(Header { op: op::SHUTDOWN, flags: shutdown::BOTH, ..header(80, 1025) }, b"");
    // Whether the host has read it or not, the ports are free for the next connection.
    while guest.receive().0.op != op::RST {}
    guest.send(Header { op: op::REQUEST, ..header(81, 1025) }, b"");
    guest.expect(op::RST, 0);
    let mut read = Vec::new();
    host.read_to_end(&mut read).unwrap();
    assert!(read == bytes);
}

#[test]
pub(super) fn a_host_that_vanishes_is_forgotten_even_if_the_guest_says_nothing() {
    let mut guest = Guest::new();
    drop(guest.connect(80, 1025));
    guest.expect(op::SHUTDOWN, shutdown::BOTH);
    guest.expect(op::RST, 0);
    guest.expect_silence();
}

#[test]
pub(super) fn a_host_that_leaves_bytes_unread_resets_the_connection() {
    let mut guest = Guest::new();
    let host = guest.connect(80, 1025);
    guest.send(Header { op: op::RW, ..header(80, 1025) }, b"unread");
    drop(host);
    let (last, _) = guest.receive();
    let last = if last.op == op::SHUTDOWN { guest.receive().0 } else { last };
    assert_eq!(last.op, op::RST);
}

#[test]
pub(super) fn a_guest_that_resets_ends_the_hosts_connection() {
    let mut guest = Guest::new();
    let mut host = guest.connect(80, 1025);
    guest.send(Header { op: op::RST, ..header(80, 1025) }, b"");
    expect_end(&mut host);
    guest.expect_silence();
}

#[test]
pub(super) fn a_second_request_resets_the_first() {
    let mut guest = Guest::new();
    let mut host = guest.connect(80, 1025);
    guest.send(Header { op: op::REQUEST, ..header(80, 1025) }, b"");
    guest.expect(op::RST, 0);
    expect_end(&mut host);
}

#[test]
pub(super) fn packets_that_belong_nowhere_are_answered_with_a_reset_and_resets_with_nothing() {
    let mut guest = Guest::new();
    for wrong in [op::RESPONSE, op::SHUTDOWN, op::RW, op::CREDIT_UPDATE, op::CREDIT_REQUEST, 0, 77] {
        guest.send(Header { op: wrong, ..header(80, 1025) }, b"");
        guest.expect(op::RST, 0);
    }
    guest.send(Header { op: op::RST, ..header(80, 1025) }, b"");
    // Of another kind than a stream, to another host.
    guest.send(Header { op: op::REQUEST, kind: 2, ..header(80, 1025) }, b"");
    assert_eq!(guest.receive().0.kind, 2);
    guest.send(Header { op: op::REQUEST, dst_cid: 7, ..header(80, 1025) }, b"");
    assert_eq!(guest.receive().0.src_cid, 7);
    // From another guest: no one to answer.
    guest.send(Header { op: op::REQUEST, src_cid: 7, ..header(80, 1025) }, b"");
    guest.expect_silence();
}

#[test]
pub(super) fn a_reset_of_the_device_ends_everything_and_it_works_again() {
    let mut guest = Guest::new();
    let mut host = guest.connect(80, 1025);
    let mut pending = guest.dial("CONNECT 52\n");
    guest.expect(op::REQUEST, 0);
    guest.device_reset();
    expect_end(&mut host);
    expect_end(&mut pending);
    // A connection made while no driver is there waits for one.
    let _early = guest.dial("CONNECT 53\n");
    guest.activate();
    guest.give_buffers();
    assert_eq!(guest.expect(op::REQUEST, 0).dst_port, 53);
    let mut host = guest.connect(81, 1025);
    guest.send(Header { op: op::RW, ..header(81, 1025) }, b"again");
    assert_eq!(read_exactly(&mut host, 5), b"again");
}

#[test]
pub(super) fn more_connections_than_sockets_are_refused_and_then_possible_again() {
    let mut guest = Guest::with_sockets(2);
    guest.give_buffers();
    let listener = guest.listen(80);
    let _first = guest.connect_to(&listener, 80, 1);
    let _second = guest.connect_to(&listener, 80, 2);
    guest.send(Header { op: op::REQUEST, ..header(80, 3) }, b"");
    guest.expect(op::RST, 0);
    expect_end(&mut guest.dial(""));
    guest.send(Header { op: op::RST, ..header(80, 2) }, b"");
    guest.connect_to(&listener, 80, 4);
}

#[test]
pub(super) fn a_thousand_connections_to_a_listener_that_takes_its_time() {
    let mut guest = Guest::new();
    // It lets no more than a few wait.
    let listener = slow_listener(&guest, 80);
    let accepting =
        std::thread::spawn(move || (0..1000).map(|_| listener.accept().unwrap().0).collect::<Vec<_>>());
    for port in 0..1000 {
        guest.send(Header { op: op::REQUEST, ..header(80, port) }, b"");
    }
    let mut answered: Vec<u32> = (0..1000).map(|_| guest.expect(op::RESPONSE, 0).dst_port).collect();
    answered.sort_unstable();
    assert!(answered.into_iter().eq(0..1000));
    assert_eq!(accepting.join().unwrap().len(), 1000);
    assert_eq!(guest.metric("opened_connections"), 1000);
}

/// A listener that lets one connection wait.
fn slow_listener(guest: &Guest, port: u32) -> std::os::unix::net::UnixListener {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};
    let socket = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    let path = format!("{}_{port}", guest.path().display());
    bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    listen(&socket, 1).unwrap();
    socket.into()
}

#[test]
pub(super) fn a_listener_that_never_takes_anybody_refuses_in_time() {
    let mut guest = Guest::new();
    let _listener = slow_listener(&guest, 80);
    for port in 0..4 {
        guest.send(Header { op: op::REQUEST, ..header(80, port) }, b"");
    }
    let answers: Vec<u16> = (0..4).map(|_| guest.receive().0.op).collect();
    assert_eq!(answers, [op::RESPONSE, op::RESPONSE, op::RST, op::RST]);
}
