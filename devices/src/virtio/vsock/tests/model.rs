//! The state of a connection against a model of both its ends.

use proptest::prelude::*;

use super::guest::header;
use super::*;
use crate::virtio::vsock::connection::{Answer, Connection, Key, Next};

const WINDOW: u32 = 1000;
const KEY: Key = Key { host_port: 80, guest_port: 1025 };

/// What happens, in any order.
#[derive(Clone, Copy, Debug)]
enum Step {
    HostWrites(u16),
    HostReads(u16),
    HostShuts,
    HostDeaf,
    GuestWrites(u16),
    GuestReads(u16),
    GuestShuts(u32),
    GuestResizes(u16),
    GuestAsks,
    /// The connection sends its next packet and the guest gets it.
    Send,
}

/// Both ends, as counts of bytes: what they are is not the connection's business.
struct Model {
    connection: Connection,
    /// Written by the host and not read by the connection; read by it; got by the guest's program.
    host_written: u32,
    guest_received: u32,
    guest_read: u32,
    guest_buffer: u32,
    /// The most that the guest ever said it had room for, counted from the beginning.
    guest_room: u32,
    host_shut: bool,
    /// Sent by the guest, got by the host.
    guest_sent: u32,
    waiting: u32,
    host_got: u32,
    /// What the guest knows of the connection's window.
    known_forwarded: u32,
    guest_flags: u32,
    told: u32,
    deaf: bool,
    over: bool,
}

impl Model {
    fn new() -> Self {
        let request = Header { op: op::REQUEST, buf_alloc: 500, ..header(80, 1025) };
        let mut connection = Connection::from_guest(KEY, &request, WINDOW);
        assert_eq!(connection.next(), None, "the host's socket is not there yet");
        connection.connected();
        assert_eq!(connection.next(), Some(Next::Control { op: op::RESPONSE, flags: 0 }));
        connection.send(op::RESPONSE, 0, 0);
        Self {
            connection,
            host_written: 0,
            guest_received: 0,
            guest_read: 0,
            guest_buffer: 500,
            guest_room: 500,
            host_shut: false,
            guest_sent: 0,
            waiting: 0,
            host_got: 0,
            known_forwarded: 0,
            guest_flags: 0,
            told: 0,
            deaf: false,
            over: false,
        }
    }

    fn packet(&mut self, op: u16, flags: u32, len: u32) -> Answer {
        let (buf_alloc, fwd_cnt) = (self.guest_buffer, self.guest_read);
        // Where the guest's buffer shrinks, what it once said stays said.
        self.guest_room = self.guest_room.max(fwd_cnt + buf_alloc);
        self.connection.packet(&Header { op, flags, len, buf_alloc, fwd_cnt, ..header(80, 1025) })
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::HostWrites(count) if !self.host_shut => {
                self.host_written += u32::from(count);
                self.connection.host_readable(false);
            }
            Step::HostShuts => {
                self.host_shut = true;
                self.connection.host_readable(true);
            }
            Step::HostReads(count) => {
                let count = u32::from(count).min(self.waiting);
                self.waiting -= count;
                self.host_got += count;
                self.connection.forwarded(count);
            }
            Step::HostDeaf => {
                self.deaf = true;
                self.connection.forwarded(std::mem::take(&mut self.waiting));
                self.connection.host_shut_receive();
            }
            Step::GuestWrites(count) if self.guest_flags & shutdown::SEND == 0 => {
                // A driver that keeps to what it was told.
                let room = WINDOW - (self.guest_sent - self.known_forwarded);
                let count = u32::from(count).min(room);
                self.guest_sent += count;
                match self.packet(op::RW, 0, count) {
                    Answer::Deliver => self.waiting += count,
                    Answer::Nothing => assert!(count == 0 || self.deaf),
                    other => panic!("{other:?} to an honest packet"),
                }
            }
            Step::GuestReads(count) => {
                self.guest_read += u32::from(count).min(self.guest_received - self.guest_read);
                assert_eq!(self.packet(op::CREDIT_UPDATE, 0, 0), Answer::Nothing);
            }
            Step::GuestShuts(flags) => {
                self.guest_flags |= flags;
                let answer = self.packet(op::SHUTDOWN, flags, 0);
                self.over = self.guest_flags == shutdown::BOTH;
                assert_eq!(answer, if self.over { Answer::Finished } else { Answer::HalfClosed });
            }
            Step::GuestResizes(size) => {
                self.guest_buffer = size.into();
                assert_eq!(self.packet(op::CREDIT_UPDATE, 0, 0), Answer::Nothing);
            }
            Step::GuestAsks => {
                assert_eq!(self.packet(op::CREDIT_REQUEST, 0, 0), Answer::Nothing);
                let next = Some(Next::Control { op: op::CREDIT_UPDATE, flags: 0 });
                assert_eq!(self.connection.next(), next);
            }
            Step::Send => {
                self.send();
            }
            Step::HostWrites(_) | Step::GuestWrites(_) => {}
        }
    }

    /// Sends what is next; false, where there is nothing.
    fn send(&mut self) -> bool {
        let Some(next) = self.connection.next() else { return false };
        let unread = self.host_written - self.guest_received;
        match next {
            Next::Control { op, flags } => {
                if op == op::SHUTDOWN {
                    assert_ne!(flags, self.told, "no news");
                    assert_eq!(flags & self.told, self.told, "it takes nothing back");
                    assert!(flags & shutdown::SEND == 0 || (self.host_shut && unread == 0), "bytes are lost");
                    assert!(flags & shutdown::RECEIVE == 0 || self.deaf);
                    self.told = flags;
                }
                self.hear(op, flags, 0);
            }
            Next::Data { most } => match most.min(unread) {
                0 if self.host_shut => self.connection.host_ended(),
                0 => self.connection.host_read_empty(),
                count => {
                    assert_eq!(self.guest_flags & shutdown::RECEIVE, 0, "the guest receives no more");
                    self.guest_received += count;
                    assert!(self.guest_received <= self.guest_room, "more than the guest has room for");
                    self.hear(op::RW, 0, count);
                }
            },
            Next::LookForEnd if unread == 0 && self.host_shut => self.connection.host_ended(),
            Next::LookForEnd => self.connection.host_not_at_end(),
        }
        true
    }

    fn hear(&mut self, op: u16, flags: u32, len: u32) {
        let packet = self.connection.send(op, flags, len);
        assert_eq!((packet.src_port, packet.dst_port, packet.len), (80, 1025, len));
        assert_eq!(packet.buf_alloc, WINDOW);
        assert!(packet.fwd_cnt >= self.known_forwarded && packet.fwd_cnt <= self.guest_sent);
        assert!(packet.fwd_cnt <= self.guest_sent - self.waiting, "forwarded and yet here");
        self.known_forwarded = packet.fwd_cnt;
    }

    /// Everybody does what is left to do; nothing may get stuck.
    fn finish(mut self) {
        self.guest_buffer = self.guest_buffer.max(100);
        for _ in 0..2000 {
            let mut busy = false;
            while !self.over && self.send() {
                busy = true;
            }
            if self.waiting > 0 {
                self.step(Step::HostReads(u16::MAX));
                busy = true;
            }
            if self.guest_read < self.guest_received || self.host_written > self.guest_received {
                self.step(Step::GuestReads(u16::MAX));
                busy |=
                    self.guest_flags & shutdown::RECEIVE == 0 && !self.over && !self.connection.is_closing();
            }
            if !busy {
                break;
            }
        }
        assert!(self.waiting == 0 && (self.deaf || self.host_got == self.guest_sent));
        if !self.over && self.guest_flags & shutdown::RECEIVE == 0 {
            assert_eq!(self.guest_received, self.host_written, "bytes are stuck");
            if self.host_shut {
                assert_eq!(self.told & shutdown::SEND, shutdown::SEND, "the end is stuck");
            }
        }
        if !self.over && self.guest_flags & shutdown::SEND == 0 && !self.connection.is_closing() {
            let room = WINDOW - (self.guest_sent - self.known_forwarded);
            assert!(room > WINDOW / 2, "the guest is stuck with room for {room} bytes");
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..2000_u16).prop_map(Step::HostWrites),
        4 => (0..2000_u16).prop_map(Step::HostReads),
        4 => (0..2000_u16).prop_map(Step::GuestWrites),
        4 => (0..2000_u16).prop_map(Step::GuestReads),
        8 => Just(Step::Send),
        1 => (0..1000_u16).prop_map(Step::GuestResizes),
        1 => Just(Step::GuestAsks),
        1 => prop_oneof![
            Just(Step::HostShuts),
            Just(Step::HostDeaf),
            Just(Step::GuestShuts(shutdown::SEND)),
            Just(Step::GuestShuts(shutdown::RECEIVE)),
        ],
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(800))]

    #[test]
    fn no_byte_is_lost_or_stuck_and_no_side_gets_more_than_it_has_room_for(
        steps in prop::collection::vec(step(), 0..60),
    ) {
        let mut model = Model::new();
        for step in steps {
            if model.over || model.connection.is_closing() {
                break;
            }
            model.step(step);
        }
        model.finish();
    }

    /// A guest that keeps to no rule gets RST, and a window is never overrun.
    #[test]
    fn whatever_the_guest_sends_no_more_is_kept_than_the_window_allows(
        packets in prop::collection::vec(
            (0..9_u16, 0..4_u32, prop_oneof![0..WINDOW * 2, any::<u32>()], any::<u32>(), any::<u32>(), 0..WINDOW),
            1..40,
        ),
    ) {
        let request = Header { op: op::REQUEST, ..header(80, 1025) };
        let mut connection = Connection::from_guest(KEY, &request, WINDOW);
        connection.connected();
        let mut waiting = 0;
        for (op, flags, len, buf_alloc, fwd_cnt, forwarded) in packets {
            let packet = Header { op, flags, len, buf_alloc, fwd_cnt, ..header(80, 1025) };
            match connection.packet(&packet) {
                Answer::Broken | Answer::Gone | Answer::Finished => return Ok(()),
                Answer::Deliver => waiting += len,
                Answer::Nothing | Answer::HalfClosed => {}
                Answer::Accepted => prop_assert!(false, "no request was sent"),
            }
            prop_assert!(waiting <= WINDOW);
            let taken = forwarded.min(waiting);
            waiting -= taken;
            connection.forwarded(taken);
            connection.host_readable(false);
            match connection.next() {
                Some(Next::Data { most }) => {
                    prop_assert!(most <= buf_alloc);
                    connection.send(op::RW, 0, most / 2);
                }
                Some(Next::Control { op, flags }) => {
                    connection.send(op, flags, 0);
                }
                _ => {}
            }
        }
    }
}
