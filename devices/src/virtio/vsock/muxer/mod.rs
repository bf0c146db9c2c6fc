//! Packets from the guest to the host's sockets, and what the sockets have to the guest.

mod deadlines;
mod dial;
mod events;
mod receive;
mod suspend;
#[cfg(test)]
mod tests;
mod transmit;

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rustix::event::epoll::{self, EventData, EventFlags};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::connection::Connection;
use super::device::VsockMetrics;
use super::dialer::Dialer;
use super::header::Header;
use super::listener::VsockListener;
use super::pool::Pool;
use super::stream::HostStream;
use super::table::{Entry, Id, Role, Table};
use crate::virtio::iovecs::IoVecs;
use crate::virtio::queue::{ActiveQueue, Chain};
use crate::virtio::{ActivateError, Activation, VirtioInterrupt};

use self::suspend::Hold;
pub(super) use self::suspend::Parked;

/// The receive queue (5.10.2).
pub(super) const RX: u16 = 0;
/// The transmit queue.
pub(super) const TX: u16 = 1;
/// The event queue.
pub(super) const EVENT: u16 = 2;

/// How many RSTs may wait for the guest to have room for them. It gets one for each packet that belongs to no
/// connection; when that many wait, its packets do.
const MAX_RESETS: usize = 256;

/// What a device's muxer is made with, the same for the device's life.
#[derive(Clone)]
pub(super) struct Setup {
    pub(super) guest_cid: u64,
    pub(super) listener: Arc<VsockListener>,
    /// Another process that connects the guest's connections.
    pub(super) dialer: Option<Arc<Dialer>>,
    /// How many sockets may be open at once.
    pub(super) most: usize,
    pub(super) metrics: Arc<VsockMetrics>,
    /// What the device's thread waits for.
    pub(super) epoll: Arc<OwnedFd>,
    /// The driver has yet to hear that its connections are gone.
    pub(super) reset_event: Flag,
}

/// A flag that the device's thread sets, and that is part of the device's state.
#[derive(Clone, Default)]
pub(super) struct Flag(Arc<AtomicBool>);

impl Flag {
    pub(super) fn get(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    pub(super) fn set(&self, value: bool) {
        self.0.store(value, Ordering::SeqCst);
    }
}

/// All connections of an active device, and its queues. One thread has it.
pub(super) struct Muxer {
    setup: Setup,
    /// What came with the queues.
    activation: Activation,
    memory: Arc<GuestMemoryMmap>,
    rx: ActiveQueue,
    tx: ActiveQueue,
    /// The driver may do without it.
    event_queue: Option<ActiveQueue>,
    event_chain: Chain,
    /// A chain of the receive queue, and whether it waits to be filled.
    rx_chain: Chain,
    rx_in_hand: bool,
    /// Chains behind it, while they are filled by the same call, and the places of one of them.
    rx_more: Vec<Chain>,
    rx_ranges: IoVecs,
    tx_chain: Chain,
    iovecs: IoVecs,
    connections: Connections,
}

/// What outlives a suspension.
struct Connections {
    table: Table,
    pool: Pool,
    /// RSTs for packets that belong to no connection.
    resets: VecDeque<Header>,
    /// Connections that have something for the guest, each once, in the order of their turns.
    ready: VecDeque<Id>,
    /// Chains of the transmit queue wait until there is room for more RSTs.
    tx_waits: bool,
    /// Processes of the host may wait to be accepted.
    accepting: bool,
    /// When to accept again, where there were no descriptors left.
    accept_at: Option<Instant>,
    /// The host's port of the next connection of the host.
    next_port: u32,
    hold: Option<Hold>,
}

impl Muxer {
    /// Serves the queues of `activation`, with the connections of `parked` where there are some.
    pub(super) fn new(
        setup: Setup,
        mut activation: Activation,
        parked: Option<Box<Parked>>,
    ) -> Result<Self, ActivateError> {
        let connections = match parked {
            Some(parked) => parked.into_connections(),
            None => Connections {
                table: Table::new(setup.most),
                pool: Pool::default(),
                resets: VecDeque::new(),
                ready: VecDeque::new(),
                tx_waits: false,
                accepting: true,
                accept_at: None,
                next_port: events::FIRST_PORT,
                hold: setup.reset_event.get().then(Hold::new),
            },
        };
        Ok(Self {
            memory: Arc::clone(&activation.memory),
            rx: ActiveQueue::take(&mut activation, RX)?.in_ram(),
            tx: ActiveQueue::take(&mut activation, TX)?.in_ram(),
            event_queue: ActiveQueue::take(&mut activation, EVENT).ok().map(ActiveQueue::in_ram),
            event_chain: Chain::default(),
            rx_chain: Chain::default(),
            rx_in_hand: false,
            rx_more: Vec::new(),
            rx_ranges: IoVecs::default(),
            tx_chain: Chain::default(),
            iovecs: IoVecs::default(),
            connections,
            activation,
            setup,
        })
    }

    /// The notifiers of the queues.
    pub(super) fn notifiers(&self) -> &[EventFd] {
        &self.activation.notifiers
    }

    /// The driver's interrupts.
    pub(super) fn interrupt(&self) -> &dyn VirtioInterrupt {
        &*self.activation.interrupt
    }

    /// Does what can be done without waiting for anybody; true, where there is more to do.
    pub(super) fn turn(&mut self) -> bool {
        if self.connections.accepting {
            self.accept();
        }
        self.expire();
        if self.has_news() {
            self.fill_receive_queue();
        }
        let resume = self.connections.tx_waits && self.connections.resets.len() < MAX_RESETS;
        if resume {
            self.serve_transmit_queue();
        }
        self.connections.accepting || resume
    }

    /// Adds an entry and watches its socket, if it has one that is connected.
    fn insert(&mut self, role: Role, stream: Option<HostStream>, connected: bool) -> Option<Id> {
        let id = self.connections.table.insert(Entry::new(role, stream))?;
        if connected && self.watch_entry(id).is_err() {
            self.connections.table.remove(id);
            return None;
        }
        Some(id)
    }

    /// Watches an entry's socket, from now on for whatever changes (edge-triggered): to wait for nothing but what
    /// is wanted would take a call for each change of mind.
    fn watch_entry(&mut self, id: Id) -> io::Result<()> {
        let Some(Entry { stream: Some(stream), .. }) = self.connections.table.get(id) else { return Ok(()) };
        let flags = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&self.setup.epoll, stream, EventData::new_u64(id.to_u64()), flags)?)
    }

    /// Watches for room in an entry's socket, or no more. Only where something waits for it: a socket has new room
    /// whenever its reader reads.
    fn watch_room(&mut self, id: Id, wanted: bool) {
        let Some(Entry { stream: Some(stream), .. }) = self.connections.table.get(id) else { return };
        let mut flags = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
        flags.set(EventFlags::OUT, wanted);
        if let Err(error) = epoll::modify(&self.setup.epoll, stream, EventData::new_u64(id.to_u64()), flags) {
            tracing::error!(%error, "cannot watch a socket of vsock");
        }
    }

    /// Appends a connection to those that wait for their turn, if it has something for the guest.
    fn enqueue(&mut self, id: Id) {
        if let Some(entry) = self.connections.table.get(id)
            && !entry.queued
            && entry.connection().is_some_and(|connection| connection.next().is_some())
        {
            entry.queued = true;
            self.connections.ready.push_back(id);
        }
    }

    fn has_news(&self) -> bool {
        !self.connections.ready.is_empty() || !self.connections.resets.is_empty()
    }

    /// Ends a connection and tells the guest.
    fn kill(&mut self, id: Id) {
        let Some(entry) = self.connections.table.get(id) else { return };
        let Some(connection) = entry.connection() else { return };
        if connection.is_dead() {
            return;
        }
        if !connection.kill() {
            self.remove(id);
            return;
        }
        // The guest may have no buffer for the RST for a long time; memory and descriptor are freed now.
        entry.stream = None;
        entry.backlog = Default::default();
        self.connections.table.set_deadline(id, None);
        self.enqueue(id);
        self.setup.metrics.reset_connections.increment();
    }

    /// Forgets an entry, and closes its socket.
    fn remove(&mut self, id: Id) {
        let Some(entry) = self.connections.table.remove(id) else { return };
        if entry.queued {
            // Otherwise a guest that takes nothing, but opens and resets connections, would make the list grow.
            self.connections.ready.retain(|other| *other != id);
        }
        match entry.role {
            Role::Handshake => {}
            Role::Connection(connection) => self.connections.pool.give_back(connection.window()),
            Role::Draining { window } => self.connections.pool.give_back(window),
        }
    }

    /// Calls `act` with the connection at `id`, which then waits for its turn if it has something for the guest.
    fn with_connection<T>(&mut self, id: Id, act: impl FnOnce(&mut Connection) -> T) -> Option<T> {
        let result = self.connections.table.get(id)?.connection().map(act);
        self.enqueue(id);
        result
    }
}
