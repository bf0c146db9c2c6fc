//! The transmit queue: what the guest sends.

use rustix::io::Errno;
use rustix::net::Shutdown;

use super::{MAX_RESETS, Muxer, deadlines};
use crate::virtio::queue::Chain;
use crate::virtio::vsock::connection::{Answer, Key};
use crate::virtio::vsock::header::{self, HOST_CID, Header, STREAM, op, shutdown};
use crate::virtio::vsock::table::Id;

impl Muxer {
    /// Takes what the driver made available, as long as there is room for the RSTs that it may cause.
    pub(in crate::virtio::vsock) fn serve_transmit_queue(&mut self) {
        let mut chain = std::mem::take(&mut self.tx_chain);
        self.tx.start_turn();
        self.connections.tx_waits = true;
        while self.connections.resets.len() < MAX_RESETS {
            if !self.tx.pop(&mut chain) {
                self.connections.tx_waits = false;
                break;
            }
            self.take_packet(&mut chain);
            self.tx.add_used(chain.head, 0);
        }
        self.tx.end_turn();
        self.tx_chain = chain;
    }

    fn take_packet(&mut self, chain: &mut Chain) {
        self.setup.metrics.tx_packets.increment();
        let mut bytes = [0; header::LENGTH];
        if !chain.readable.take(&self.memory, &mut bytes) {
            self.setup.metrics.invalid_packets.increment();
            return;
        }
        let header = Header::decode(bytes);
        if header.src_cid != self.setup.guest_cid {
            // Whom it is from is all that an answer could go to (5.10.6.4.1).
            self.setup.metrics.invalid_packets.increment();
            return;
        }
        let key = Key { host_port: header.dst_port, guest_port: header.src_port };
        let known = header.dst_cid == HOST_CID && header.kind == STREAM;
        match self.connections.table.find(key).filter(|_| known) {
            Some(id) if u64::from(header.len) > chain.readable.len() => {
                self.setup.metrics.invalid_packets.increment();
                self.break_off(id, &header);
            }
            Some(id) => self.take_packet_of(id, &header, chain),
            None if known && header.op == op::REQUEST => self.connect(key, &header),
            None => self.refuse(&header),
        }
    }

    /// Answers a packet that belongs to no connection; RST has no answer, lest two sides keep answering.
    fn refuse(&mut self, header: &Header) {
        if header.op == op::RST {
            return;
        }
        self.connections.resets.push_back(Header {
            src_cid: header.dst_cid,
            dst_cid: header.src_cid,
            src_port: header.dst_port,
            dst_port: header.src_port,
            kind: header.kind,
            op: op::RST,
            ..Header::default()
        });
    }

    /// The guest broke a rule: it gets RST, and the connection is over.
    fn break_off(&mut self, id: Id, header: &Header) {
        tracing::debug!(?header, "the guest broke a rule of vsock; the connection is reset");
        self.setup.metrics.reset_connections.increment();
        self.remove(id);
        self.refuse(header);
    }

    fn take_packet_of(&mut self, id: Id, header: &Header, chain: &mut Chain) {
        match self.with_connection(id, |connection| connection.packet(header)) {
            None | Some(Answer::Nothing) => {}
            Some(Answer::Accepted) => self.answer_host(id),
            Some(Answer::Deliver) => self.deliver(id, header.len, chain),
            Some(Answer::HalfClosed) => self.pass_shutdown_on(id),
            Some(Answer::Finished) => {
                self.finish(id);
                self.refuse(header);
            }
            Some(Answer::Gone) => self.remove(id),
            Some(Answer::Broken) => self.break_off(id, header),
        }
    }

    /// Gives the payload of a packet to the host's socket: from guest memory, as far as there is room.
    fn deliver(&mut self, id: Id, length: u32, chain: &mut Chain) {
        let Some(entry) = self.connections.table.get(id) else { return };
        let Some(stream) = &entry.stream else { return };
        self.setup.metrics.tx_bytes.add(length.into());
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        self.tx.spend(length as u64, 1);
        let mut written = 0;
        if entry.backlog.is_empty() {
            self.iovecs.clear();
            // All buffers are in RAM.
            if chain.readable.append_to(&self.memory, &mut self.iovecs).is_err() {
                return self.kill(id);
            }
            self.iovecs.truncate(length);
            // SAFETY: the ranges are of guest memory, which `self.memory` keeps.
            match unsafe { stream.write(&self.iovecs) } {
                Ok(count) => written = count,
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => return self.host_shut_receive(id, length),
            }
        }
        if let Some(connection) = entry.connection() {
            connection.forwarded(u32::try_from(written).unwrap_or(u32::MAX));
        }
        if written < length {
            let window = entry.connection().map_or(0, |connection| connection.window());
            let window = usize::try_from(window).unwrap_or(usize::MAX);
            let was_empty = entry.backlog.is_empty();
            chain.readable.skip(written);
            entry.backlog.push(&self.memory, &mut chain.readable, length - written, window);
            if was_empty {
                self.setup.metrics.tx_stalls.increment();
                self.watch_room(id, true);
            }
        }
        self.enqueue(id);
    }

    /// The host reads no more: what waits for it, and `more` bytes, are not wanted.
    pub(super) fn host_shut_receive(&mut self, id: Id, more: usize) {
        let Some(entry) = self.connections.table.get(id) else { return };
        let waiting = entry.backlog.len();
        entry.backlog = Default::default();
        let count = u32::try_from(waiting + more).unwrap_or(u32::MAX);
        self.with_connection(id, |connection| {
            connection.forwarded(count);
            connection.host_shut_receive();
        });
    }

    /// Ends the directions of the host's socket that the guest ended, once it has all that was sent before.
    pub(super) fn pass_shutdown_on(&mut self, id: Id) {
        let Some(entry) = self.connections.table.get(id) else { return };
        let Some(flags) = entry.connection().map(|connection| connection.guest_shut()) else { return };
        let Some(stream) = &entry.stream else { return };
        if flags & shutdown::RECEIVE != 0 {
            stream.shut(Shutdown::Read);
        }
        if flags & shutdown::SEND != 0 && entry.backlog.is_empty() {
            stream.shut(Shutdown::Write);
        }
    }

    /// The guest is done with a connection. The host still gets what was sent before.
    fn finish(&mut self, id: Id) {
        let Some(entry) = self.connections.table.get(id) else { return };
        if entry.backlog.is_empty() {
            self.remove(id);
        } else {
            self.connections.table.set_draining(id);
            self.connections.table.set_deadline(id, Some(deadlines::in_time(deadlines::DRAIN)));
        }
    }

    pub(super) fn refuse_connection(&mut self, request: &Header) {
        self.setup.metrics.refused_connections.increment();
        self.refuse(request);
    }
}
