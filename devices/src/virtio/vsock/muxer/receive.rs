//! The receive queue: what the guest gets.

use rustix::io::Errno;

use super::{Muxer, deadlines};
use crate::virtio::queue::Chain;
use crate::virtio::vsock::connection::Next;
use crate::virtio::vsock::header::{self, Header, op};
use crate::virtio::vsock::table::{Entry, Id};

/// How many bytes are read from a host's socket at once, where it has so many, however small the guest's buffers are.
const BURST: usize = 64 << 10;
/// The most buffers behind the first that they are read to.
const MAX_MORE: usize = 15;

impl Muxer {
    /// Fills the guest's buffers: RSTs first, then a packet of each connection in turn.
    pub(in crate::virtio::vsock) fn fill_receive_queue(&mut self) {
        if self.is_held() {
            return;
        }
        self.rx.start_turn();
        while self.has_news() && self.rx.may_go_on() {
            if !self.rx_in_hand && !self.take_buffer() {
                break;
            }
            if let Some(reset) = self.connections.resets.pop_front() {
                self.send(&reset);
            } else if let Some(id) = self.connections.ready.pop_front() {
                if let Some(entry) = self.connections.table.get(id) {
                    entry.queued = false;
                    self.send_of(id);
                }
                self.enqueue(id);
            }
        }
        if self.has_news() && !self.rx.may_go_on() {
            self.rx.notify_again();
        }
        self.rx.end_turn();
    }

    /// Takes the next buffer of the driver's; false, where there is none.
    fn take_buffer(&mut self) -> bool {
        if !self.rx.pop(&mut self.rx_chain) {
            self.setup.metrics.rx_stalls.increment();
            return false;
        }
        if self.rx_chain.writable.len() <= header::LENGTH as u64 {
            // No packet with data would ever fit.
            self.rx.fail_chain(self.rx_chain.head);
            return false;
        }
        self.rx_in_hand = true;
        true
    }

    /// Gives the buffer in hand back, with `header` and as much payload as it says.
    fn send(&mut self, header: &Header) {
        if self.rx_chain.writable.put(&self.memory, &header.encode()) < header::LENGTH {
            // All buffers are in RAM, and it was checked that there is room.
            return self.rx.fail_chain(self.rx_chain.head);
        }
        let length = header.len.saturating_add(u32::try_from(header::LENGTH).unwrap_or_default());
        self.rx.add_used(self.rx_chain.head, length);
        self.rx_in_hand = false;
        self.setup.metrics.rx_packets.increment();
        self.setup.metrics.rx_bytes.add(header.len.into());
    }

    /// Sends what the connection at `id` has next, if that is still so.
    fn send_of(&mut self, id: Id) {
        let Some(connection) = self.connections.table.get(id).and_then(Entry::connection) else { return };
        match connection.next() {
            None => {}
            Some(Next::Control { op, flags }) => {
                let header = connection.send(op, flags, 0);
                self.send(&header);
                self.sent(id, op);
            }
            Some(Next::Data { most }) => self.send_data(id, most),
            Some(Next::LookForEnd) => self.look_for_end(id),
        }
    }

    /// What follows from having sent a packet.
    fn sent(&mut self, id: Id, sent: u16) {
        match sent {
            op::RST => self.remove(id),
            op::CREDIT_REQUEST => self.setup.metrics.credit_stalls.increment(),
            op::SHUTDOWN => {
                if let Some(entry) = self.connections.table.get(id)
                    && entry.connection().is_some_and(|connection| connection.is_closing())
                {
                    // Neither has anything for the other: the descriptor is free while the guest is waited for.
                    entry.stream = None;
                    self.connections.table.set_deadline(id, Some(deadlines::in_time(deadlines::CLOSE)));
                }
            }
            _ => {}
        }
    }

    /// Reads from the host's socket into the buffer in hand; where no other connection waits and the socket filled all
    /// that it was given last time, into those behind it too. Each is a packet, and Linux makes them of 4 KiB: a call
    /// for each costs more than to copy it.
    fn send_data(&mut self, id: Id, most: u32) {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let Some(entry) = self.connections.table.get(id) else { return };
        // Others that wait have their turns packet by packet.
        let is_busy = std::mem::take(&mut entry.is_busy) && self.connections.ready.is_empty();
        let Some(mut room) = self.begin_burst() else { return };
        let mut more = 0;
        while is_busy && room < most.min(BURST) && self.take_another(more, &mut room) {
            more += 1;
        }
        self.iovecs.truncate(most);
        if let Some(count) = self.read_from(id) {
            if let Some(entry) = self.connections.table.get(id) {
                entry.is_busy = count == room.min(most);
            }
            more -= self.send_burst(id, count, more);
        }
        self.rx.put_back(u16::try_from(more).unwrap_or(u16::MAX));
    }

    /// Lists the places of the buffer in hand for reading, and returns how many bytes have room there.
    fn begin_burst(&mut self) -> Option<usize> {
        self.iovecs.clear();
        // All buffers are in RAM.
        if self.rx_chain.writable.append_to(&self.memory, &mut self.iovecs).is_err() {
            self.rx.fail_chain(self.rx_chain.head);
            return None;
        }
        self.iovecs.advance(header::LENGTH);
        Some(payload_room(&self.rx_chain))
    }

    /// Takes the next buffer as number `index` of those behind the one in hand, and appends its places to those for
    /// reading; false, where there is none for this turn.
    fn take_another(&mut self, index: usize, room: &mut usize) -> bool {
        if index >= MAX_MORE || !self.rx.has_available() || !self.rx.may_go_on() {
            return false;
        }
        if self.rx_more.len() <= index {
            self.rx_more.push(Chain::default());
        }
        let Some(chain) = self.rx_more.get_mut(index) else { return false };
        if !self.rx.pop(chain) {
            return false;
        }
        self.rx_ranges.clear();
        let here = payload_room(chain);
        if here == 0 || chain.writable.append_to(&self.memory, &mut self.rx_ranges).is_err() {
            self.rx.fail_chain(chain.head);
            return false;
        }
        self.rx_ranges.copy_part(header::LENGTH, here, &mut self.iovecs);
        *room = room.saturating_add(here);
        true
    }

    /// Reads from the host's socket to the places that are listed; `None`, where that gave nothing for the guest.
    fn read_from(&mut self, id: Id) -> Option<usize> {
        let entry = self.connections.table.get(id)?;
        // SAFETY: the ranges are of guest memory, which `self.memory` keeps.
        let result = unsafe { entry.stream.as_ref()?.read(&self.iovecs) };
        self.rx.spend(result.map_or(0, |count| count as u64), 1);
        let connection = entry.connection()?;
        match result {
            Ok(0) => connection.host_ended(),
            Ok(count) => return Some(count),
            Err(Errno::AGAIN) => connection.host_read_empty(),
            Err(Errno::INTR) => {}
            // The other end is gone and has not read all that it was sent.
            Err(_) => self.kill(id),
        }
        None
    }

    /// Sends the `count` bytes that were read to the buffer in hand and the `more` behind it, and returns how many of
    /// those are used.
    fn send_burst(&mut self, id: Id, mut count: usize, more: usize) -> usize {
        for used in 0..=more {
            let here = payload_room(&self.rx_chain).min(count);
            let Some(connection) = self.connections.table.get(id).and_then(Entry::connection) else {
                return used;
            };
            let header = connection.send(op::RW, 0, u32::try_from(here).unwrap_or(u32::MAX));
            self.send(&header);
            count -= here;
            if count == 0 || used == more {
                return used;
            }
            if let Some(next) = self.rx_more.get_mut(used) {
                std::mem::swap(&mut self.rx_chain, next);
                self.rx_in_hand = true;
            }
        }
        more
    }

    /// Looks whether there is but the end to read from the host's socket.
    fn look_for_end(&mut self, id: Id) {
        let Some(entry) = self.connections.table.get(id) else { return };
        let Some(stream) = &entry.stream else { return };
        let result = stream.peek(&mut [0]);
        self.rx.spend(0, 1);
        let Some(connection) = entry.connection() else { return };
        match result {
            Ok(0) => connection.host_ended(),
            Ok(_) | Err(Errno::AGAIN) => connection.host_not_at_end(),
            Err(Errno::INTR) => {}
            Err(_) => self.kill(id),
        }
    }
}

/// How many bytes a buffer has room for behind the header.
fn payload_room(chain: &Chain) -> usize {
    usize::try_from(chain.writable.len()).unwrap_or(usize::MAX).saturating_sub(header::LENGTH)
}
