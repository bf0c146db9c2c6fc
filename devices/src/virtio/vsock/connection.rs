//! The state of one connection. It has neither queues nor sockets: its input is what the guest and the host's socket
//! did, its output the next packet for the guest.

use super::credit::{PeerWindow, Window};
use super::header::{HOST_CID, Header, STREAM, op, shutdown};

/// What tells connections of a guest apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) host_port: u32,
    pub(super) guest_port: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The guest asked, and the host's socket is not connected yet.
    Connecting,
    /// The host asked, and the guest has not answered yet.
    Requested,
    /// Both sides are there.
    Established,
    /// Both directions are shut down, and SHUTDOWN was sent; the guest answers with RST.
    Closing,
    /// It has ended, and RST is to be sent.
    Dead,
}

/// What has to be done about a packet of the guest, beyond what [`Connection::next`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Nothing.
    Nothing,
    /// The guest accepted the host's connection: the host gets its answer.
    Accepted,
    /// The packet's payload is for the host.
    Deliver,
    /// The guest will receive or send no more ([`Connection::guest_shut`]).
    HalfClosed,
    /// The guest is done with the connection, but for what it has sent; it waits for RST.
    Finished,
    /// The guest has forgotten the connection.
    Gone,
    /// The guest broke a rule: it gets RST, and the connection is over.
    Broken,
}

/// What the guest has to get next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A packet without payload.
    Control { op: u16, flags: u32 },
    /// What the host's socket has to read, up to `most` bytes.
    Data { most: u32 },
    /// The guest has no room for data. Where the host's socket has come to its end, it may hear of that.
    LookForEnd,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    key: Key,
    guest_cid: u64,
    state: State,
    window: Window,
    peer: PeerWindow,
    /// REQUEST or RESPONSE has been sent.
    introduced: bool,
    /// The guest asked for a CREDIT_UPDATE.
    update_asked: bool,
    /// CREDIT_REQUEST was sent since the guest last had room.
    credit_asked: bool,
    /// The host's socket may have something to read.
    readable: bool,
    /// The other end of the host's socket will write no more, but that may not have been read yet.
    ending: bool,
    /// What the guest does no more ([`shutdown`]).
    guest_shut: u32,
    /// What the host does no more.
    host_shut: u32,
    /// `host_shut` as it was last sent to the guest.
    announced_shut: u32,
}

impl Connection {
    fn new(key: Key, guest_cid: u64, state: State, window: u32) -> Self {
        Self {
            key,
            guest_cid,
            state,
            window: Window::new(window),
            peer: PeerWindow::default(),
            introduced: false,
            update_asked: false,
            credit_asked: false,
            readable: false,
            ending: false,
            guest_shut: 0,
            host_shut: 0,
            announced_shut: 0,
        }
    }

    /// A connection that the host asks for. `window` is what the guest may have on its way, in bytes.
    pub(super) fn from_host(key: Key, guest_cid: u64, window: u32) -> Self {
        // Behind its CONNECT line, the host may have written more already.
        Self { readable: true, ..Self::new(key, guest_cid, State::Requested, window) }
    }

    /// A connection that the guest asked for with `request`; the host's socket is still to be connected.
    pub(super) fn from_guest(key: Key, request: &Header, window: u32) -> Self {
        let mut connection = Self::new(key, request.src_cid, State::Connecting, window);
        connection.peer.update(request.buf_alloc, request.fwd_cnt);
        connection
    }

    pub(super) fn key(&self) -> Key {
        self.key
    }

    pub(super) fn window(&self) -> u32 {
        self.window.size()
    }

    pub(super) fn is_connecting(&self) -> bool {
        self.state == State::Connecting
    }

    pub(super) fn is_requested(&self) -> bool {
        self.state == State::Requested
    }

    pub(super) fn is_closing(&self) -> bool {
        self.state == State::Closing
    }

    pub(super) fn is_dead(&self) -> bool {
        self.state == State::Dead
    }

    /// What the guest does no more ([`shutdown`]).
    pub(super) fn guest_shut(&self) -> u32 {
        self.guest_shut
    }

    /// Takes a packet of the guest.
    pub(super) fn packet(&mut self, header: &Header) -> Answer {
        if header.op == op::RST {
            return Answer::Gone;
        }
        if self.state == State::Dead {
            return Answer::Nothing;
        }
        self.peer.update(header.buf_alloc, header.fwd_cnt);
        if self.peer.credit() > 0 {
            self.credit_asked = false;
        }
        match (header.op, self.state) {
            (op::RESPONSE, State::Requested) => {
                self.state = State::Established;
                Answer::Accepted
            }
            (op::RW, State::Established | State::Closing) => self.payload(header.len),
            (op::SHUTDOWN, State::Connecting | State::Established | State::Closing) => {
                self.guest_shut |= header.flags & shutdown::BOTH;
                if self.guest_shut == shutdown::BOTH { Answer::Finished } else { Answer::HalfClosed }
            }
            (op::CREDIT_UPDATE, State::Established | State::Closing) => Answer::Nothing,
            (op::CREDIT_REQUEST, State::Established | State::Closing) => {
                self.update_asked = true;
                Answer::Nothing
            }
            _ => Answer::Broken,
        }
    }

    fn payload(&mut self, length: u32) -> Answer {
        if self.guest_shut & shutdown::SEND != 0 || !self.window.receive(length) {
            return Answer::Broken;
        }
        if self.host_shut & shutdown::RECEIVE != 0 {
            // Sent before the guest knew that the host does not read any more.
            self.window.forward(length);
            return Answer::Nothing;
        }
        if length == 0 { Answer::Nothing } else { Answer::Deliver }
    }

    /// The host's socket is connected.
    pub(super) fn connected(&mut self) {
        self.state = State::Established;
    }

    /// The host's socket took `count` bytes, or they are not wanted any more.
    pub(super) fn forwarded(&mut self, count: u32) {
        self.window.forward(count);
    }

    /// The host's socket may have something to read; `ending`: its other end will write no more.
    pub(super) fn host_readable(&mut self, ending: bool) {
        self.readable = true;
        self.ending |= ending;
    }

    /// The host's socket has nothing to read now.
    pub(super) fn host_read_empty(&mut self) {
        self.readable = false;
    }

    /// What the socket has to read is not its end: that comes behind it, where it will be found.
    pub(super) fn host_not_at_end(&mut self) {
        self.ending = false;
    }

    /// The host's socket was read to its end.
    pub(super) fn host_ended(&mut self) {
        self.readable = false;
        self.host_shut |= shutdown::SEND;
    }

    /// The host will read no more; true, where that is new.
    pub(super) fn host_shut_receive(&mut self) -> bool {
        let new = self.host_shut & shutdown::RECEIVE == 0;
        self.host_shut |= shutdown::RECEIVE;
        new
    }

    /// Ends the connection; false, where the guest has never heard of it and need not.
    pub(super) fn kill(&mut self) -> bool {
        let known = self.state != State::Requested || self.introduced;
        self.state = State::Dead;
        known
    }

    /// What the guest has to get next, if anything.
    pub(super) fn next(&self) -> Option<Next> {
        let control = |op| Some(Next::Control { op, flags: 0 });
        match self.state {
            State::Dead => control(op::RST),
            State::Requested if !self.introduced => control(op::REQUEST),
            State::Connecting | State::Requested => None,
            State::Established if !self.introduced => control(op::RESPONSE),
            State::Established | State::Closing if self.update_asked || self.update_is_due() => {
                control(op::CREDIT_UPDATE)
            }
            // What the host sends no more is known only once all that it sent was read. Where that will be soon, the
            // guest gets one SHUTDOWN for both directions.
            State::Established
                if self.host_shut != self.announced_shut
                    && !(self.ending && self.has_data() && self.peer.credit() > 0) =>
            {
                Some(Next::Control { op: op::SHUTDOWN, flags: self.host_shut })
            }
            State::Established if self.has_data() => match self.peer.credit() {
                0 if self.ending => Some(Next::LookForEnd),
                0 if self.credit_asked => None,
                0 => control(op::CREDIT_REQUEST),
                most => Some(Next::Data { most }),
            },
            State::Established | State::Closing => None,
        }
    }

    fn has_data(&self) -> bool {
        self.readable && self.guest_shut & shutdown::RECEIVE == 0
    }

    fn update_is_due(&self) -> bool {
        self.guest_shut & shutdown::SEND == 0 && self.window.update_is_due()
    }

    /// The header of a packet that is being sent, with `len` bytes of payload.
    pub(super) fn send(&mut self, op: u16, flags: u32, len: u32) -> Header {
        match op {
            op::REQUEST | op::RESPONSE => self.introduced = true,
            op::RW => self.peer.send(len),
            op::CREDIT_UPDATE => self.update_asked = false,
            op::CREDIT_REQUEST => self.credit_asked = true,
            op::SHUTDOWN => {
                self.announced_shut = flags;
                if flags == shutdown::BOTH {
                    self.state = State::Closing;
                }
            }
            _ => {}
        }
        let (buf_alloc, fwd_cnt) = self.window.announce();
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: self.key.host_port,
            dst_port: self.key.guest_port,
            len,
            kind: STREAM,
            op,
            flags,
            buf_alloc,
            fwd_cnt,
        }
    }
}
