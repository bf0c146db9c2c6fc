//! Suspending: the queues go back, and the connections stay where they are.

use std::num::Wrapping;
use std::time::Instant;

use super::{Connections, Muxer, deadlines};
use crate::virtio::queue::ActiveQueue;
use crate::virtio::{Activation, Queue};

/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET (5.10.6.7).
const TRANSPORT_RESET: u32 = 0;

/// The connections of a suspended device. Its sockets are not read meanwhile, and no time passes.
pub(in crate::virtio::vsock) struct Parked {
    connections: Connections,
    since: Instant,
    /// What the queues were served with; it has none itself.
    activation: Activation,
}

impl Parked {
    /// What the queues were served with before, with `queues`.
    pub(in crate::virtio::vsock) fn activation_with(&self, queues: Vec<Option<Queue>>) -> Activation {
        Activation {
            memory: self.activation.memory.clone(),
            dma: self.activation.dma.clone(),
            queues,
            notifiers: self.activation.notifiers.clone(),
            features: self.activation.features,
            interrupt: self.activation.interrupt.clone(),
            meter: self.activation.meter.clone(),
        }
    }

    /// The connections, to be gone on with now.
    pub(super) fn into_connections(mut self) -> Connections {
        let paused = self.since.elapsed();
        self.connections.table.put_off(paused);
        if let Some(at) = &mut self.connections.accept_at {
            *at += paused;
        }
        if let Some(hold) = &mut self.connections.hold {
            hold.until += paused;
        }
        self.connections
    }
}

/// Packets to the driver wait until it has heard that its connections are gone. Linux ends all that it has when it takes
/// the event, and says nothing of one that was made meanwhile; then it makes the event's buffer available again.
pub(super) struct Hold {
    /// When they wait no longer, for a driver that never does so.
    pub(super) until: Instant,
    /// How many event buffers it had made available when it was told; `None`: it is yet to be told.
    told_at: Option<Wrapping<u16>>,
}

impl Hold {
    pub(super) fn new() -> Self {
        Self { until: deadlines::in_time(deadlines::EVENT), told_at: None }
    }
}

impl Muxer {
    /// Gives the queues back, by their indices, and what is left.
    pub(in crate::virtio::vsock) fn suspend(mut self) -> (Vec<Option<Queue>>, Parked) {
        if self.rx_in_hand {
            self.rx.unpop();
        }
        let queues = vec![
            Some(self.rx.into_queue()),
            Some(self.tx.into_queue()),
            self.event_queue.map(ActiveQueue::into_queue),
        ];
        let (connections, activation) = (self.connections, self.activation);
        (queues, Parked { connections, since: Instant::now(), activation })
    }

    /// Tells the driver that its connections are gone, where that is so and the driver has a buffer for it
    /// (5.10.6.7).
    pub(in crate::virtio::vsock) fn send_reset_event(&mut self) {
        let Some(queue) = &mut self.event_queue else { return };
        if !self.setup.reset_event.get() {
            return;
        }
        queue.start_turn();
        if queue.pop(&mut self.event_chain) {
            let event = TRANSPORT_RESET.to_le_bytes();
            let written = self.event_chain.writable.put(&self.memory, &event);
            if written == event.len() {
                if let Some(hold) = &mut self.connections.hold {
                    hold.told_at = Some(queue.await_more());
                }
                queue.add_used(self.event_chain.head, u32::try_from(written).unwrap_or(u32::MAX));
                self.setup.reset_event.set(false);
            } else {
                queue.fail_chain(self.event_chain.head);
            }
        }
        queue.end_turn();
    }

    /// Whether packets to the driver wait until it has heard that its connections are gone.
    pub(super) fn is_held(&mut self) -> bool {
        let Some(hold) = &self.connections.hold else { return false };
        // A driver without the queue cannot hear it.
        let has_heard = self
            .event_queue
            .as_ref()
            .is_none_or(|queue| hold.told_at.is_some_and(|count| queue.available() != count));
        if has_heard || hold.until <= Instant::now() {
            self.connections.hold = None;
        }
        self.connections.hold.is_some()
    }
}
