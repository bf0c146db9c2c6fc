//! The device: its queues, its config space, and the ends that the host holds.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::config::{self, EMERGENCY_WRITE, F_EMERG_WRITE, F_SIZE, WindowSize};
use super::input::Pending;
use super::listener::Listener;
use super::output::{ConsoleSink, SentPart, Transmitter};
use crate::Timer;
use crate::metrics::Metrics;
use crate::virtio::queue::ActiveQueue;
use crate::virtio::{ActivateError, Activation, Queue, StopError, VirtioDevice, VirtioInterrupt};

/// The queues of port 0 (5.3.2): what the user types, and what the guest outputs.
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const QUEUE_SIZES: [u16; 2] = [64, 64];

/// The state of a console beyond its queues.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {
    /// What was typed and not yet given to the driver.
    pub typed: Vec<u8>,
    /// The chain whose output is not complete. It is the queue's next one.
    pub sending: Option<SentPart>,
    /// Whether the driver listens.
    pub listener: Listener,
    /// The window's size, as the driver was last signalled.
    pub size: WindowSize,
}

crate::metrics! {
    /// What a console counts.
    pub struct ConsoleMetrics {
        /// Bytes that the driver was given.
        input_bytes,
        /// Bytes that the driver output.
        output_bytes,
        /// Bytes that came by the config space, from a driver in distress.
        emergency_bytes,
    }
}

/// What the driver has set up.
struct Active {
    receive: ActiveQueue,
    listener: Listener,
    transmit: Transmitter,
    interrupt: Arc<dyn VirtioInterrupt>,
}

/// A console with one port.
pub struct Console {
    sink: Box<dyn ConsoleSink>,
    typed: Pending,
    /// There is room for typed bytes again.
    drained: EventFd,
    /// It is time to ask whether anybody listens.
    timer: Timer,
    size: WindowSize,
    active: Option<Active>,
    /// The state of a suspended device, but for what was typed.
    suspended: Option<ConsoleState>,
    metrics: Arc<ConsoleMetrics>,
}

impl Console {
    /// A console that outputs to `sink`, in a window of `size`.
    ///
    /// # Errors
    ///
    /// Those of making an eventfd and a timer.
    pub fn new(sink: Box<dyn ConsoleSink>, size: WindowSize) -> io::Result<Self> {
        Ok(Self {
            sink,
            typed: Pending::default(),
            drained: EventFd::new(EFD_NONBLOCK)?,
            timer: Timer::new()?,
            size,
            active: None,
            suspended: None,
            metrics: Arc::default(),
        })
    }

    /// How many typed bytes the console takes now: none while no driver works.
    pub fn input_room(&self) -> usize {
        if self.active.is_some() { self.typed.room() } else { 0 }
    }

    /// Types as much of `bytes` as there is room for, and gives the count.
    pub fn input(&mut self, bytes: &[u8]) -> usize {
        let (fitting, _) = bytes.split_at(self.input_room().min(bytes.len()));
        let taken = self.typed.push(fitting);
        self.deliver();
        taken
    }

    /// Becomes readable when there is room for typed bytes again, and when a driver begins to work.
    ///
    /// # Errors
    ///
    /// Those of duplicating an eventfd.
    pub fn drained(&self) -> io::Result<EventFd> {
        self.drained.try_clone()
    }

    /// Tells the driver that the window has changed.
    pub fn resize(&mut self, size: WindowSize) {
        if size == self.size {
            return;
        }
        self.size = size;
        if let Some(active) = &self.active {
            active.interrupt.config_changed(&config::space(self.size));
        }
    }

    /// Outputs what the driver has made available, whether or not it has notified the device yet.
    pub fn flush(&mut self) {
        if let Some(active) = &mut self.active {
            self.metrics.output_bytes.add(active.transmit.turn(&mut *self.sink));
        }
    }

    /// Works on the queues of `activation`.
    fn start(
        &mut self,
        mut activation: Activation,
        listener: Listener,
        sending: Option<SentPart>,
    ) -> Result<(), ActivateError> {
        let receive = ActiveQueue::take(&mut activation, RECEIVE)?.in_ram();
        let transmit = Transmitter::new(ActiveQueue::take(&mut activation, TRANSMIT)?, sending);
        self.active = Some(Active { receive, listener, transmit, interrupt: activation.interrupt });
        self.signal_room();
        Ok(())
    }

    fn deliver(&mut self) {
        let Some(active) = &mut self.active else { return };
        let (was_known, has_size) = (active.listener.is_known(), self.size != WindowSize::default());
        if self.typed.is_empty() && (was_known || !has_size)
            || !active.listener.is_there(&mut active.receive, &self.timer)
        {
            return;
        }
        if !was_known && has_size {
            // It may have discarded earlier sizes of the window as well.
            active.interrupt.config_changed(&config::space(self.size));
        }
        let delivered = self.typed.deliver(&mut active.receive);
        self.metrics.input_bytes.add(delivered as u64);
        if delivered > 0 {
            self.signal_room();
        }
    }

    fn signal_room(&self) {
        // It fails only where the counter is full, and then the reader is being woken already.
        let _ = self.drained.write(1);
    }
}

impl VirtioDevice for Console {
    type State = ConsoleState;

    fn device_type(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn features(&self) -> u64 {
        F_SIZE | F_EMERG_WRITE
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config_space(&self) -> Vec<u8> {
        config::space(self.size).to_vec()
    }

    /// A driver may write the emergency byte at any time, even before it has negotiated (5.3.4).
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (EMERGENCY_WRITE, [byte, ..]) = (offset, data) {
            // It is written even where there is no room: it may be the last output of the guest.
            let _ = self.sink.write_all(&[*byte]);
            self.metrics.emergency_bytes.increment();
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.start(activation, Listener::default(), None)?;
        if let Some(active) = &self.active
            && self.size != WindowSize::default()
        {
            // Linux reads the size only after it was notified of a change.
            active.interrupt.config_changed(&config::space(self.size));
        }
        self.deliver();
        Ok(())
    }

    fn reset(&mut self) -> Result<(), StopError> {
        self.active = None;
        if let Some(suspended) = &mut self.suspended {
            *suspended = ConsoleState { size: suspended.size, ..ConsoleState::default() };
        }
        Ok(())
    }

    /// From now on [`input_room`](Self::input_room) is 0.
    fn suspend(&mut self) -> Result<Vec<Option<Queue>>, StopError> {
        let state = self.state();
        let Some(Active { receive, transmit, .. }) = self.active.take() else {
            self.suspended.get_or_insert(state);
            return Ok(Vec::new());
        };
        let (transmit, sending) = transmit.suspend();
        self.suspended = Some(ConsoleState { sending, ..state });
        Ok(vec![Some(receive.into_queue()), Some(transmit)])
    }

    fn resume(&mut self, activation: Option<Activation>, state: ConsoleState) -> Result<(), ActivateError> {
        let invalid = |what: &str| ActivateError::State(what.to_owned());
        let ConsoleState { typed, sending, listener, size } = state;
        if !listener.is_valid() {
            return Err(invalid("it has asked its driver more often than it does"));
        }
        self.typed = Pending::restored(typed).ok_or_else(|| invalid("more was typed than may wait"))?;
        self.suspended = None;
        let Some(activation) = activation else { return Ok(()) };
        self.start(activation, listener, sending)?;
        if let Some(active) = &mut self.active {
            active.listener.resume(&self.timer);
            if size != self.size {
                // The window is another one, or its size has changed meanwhile.
                active.interrupt.config_changed(&config::space(self.size));
            }
        }
        Ok(())
    }

    fn queue_notified(&mut self, index: u16) {
        match index {
            RECEIVE => self.deliver(),
            _ => self.flush(),
        }
    }

    fn wake_fds(&self) -> Vec<RawFd> {
        vec![self.sink.room_fd(), self.timer.as_raw_fd()]
    }

    fn woken(&mut self, index: usize) {
        if index == 0 {
            self.sink.acknowledge();
            return self.flush();
        }
        self.timer.acknowledge();
        if let Some(active) = &mut self.active {
            active.listener.ask(&mut active.receive, &self.timer);
            // It may have answered already.
            self.deliver();
        }
    }

    fn metrics(&self) -> Arc<dyn Metrics> {
        self.metrics.clone()
    }

    fn state(&self) -> ConsoleState {
        let typed = self.typed.bytes();
        match (&self.active, &self.suspended) {
            (Some(active), _) => ConsoleState {
                typed,
                sending: active.transmit.part(),
                listener: active.listener.clone(),
                size: self.size,
            },
            (None, Some(suspended)) => ConsoleState { typed, ..suspended.clone() },
            (None, None) => ConsoleState { typed, size: self.size, ..ConsoleState::default() },
        }
    }
}
