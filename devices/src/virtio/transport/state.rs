//! Suspending a device with its transport, and the state of both.

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};

use super::registers::Registers;
use super::signals::SignalState;
use super::{Suspended, Transport};
use crate::lock;
use crate::suspend::{Section, Suspend, SuspendError};
use crate::virtio::{Queue, QueueState, StopError, VirtioDevice, VirtioInterrupt};

/// The version of [`TransportState`]'s format.
const VERSION: u32 = 1;
/// All bits that a status may have.
const STATUS: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE
    | VIRTIO_CONFIG_S_DRIVER
    | VIRTIO_CONFIG_S_FEATURES_OK
    | VIRTIO_CONFIG_S_DRIVER_OK
    | VIRTIO_CONFIG_S_NEEDS_RESET
    | VIRTIO_CONFIG_S_FAILED;

/// All of a virtio device that is not in guest memory: what the driver has set up, where its queues are, and the
/// device's own state.
#[derive(Debug, Serialize, Deserialize)]
pub struct TransportState<S> {
    registers: Registers,
    status: u32,
    interrupt_status: u32,
    config_generation: u32,
    /// The queues that the device works on.
    queues: Vec<Option<QueueState>>,
    /// The device's own state.
    pub device: S,
}

impl<D: VirtioDevice> Transport<D> {
    /// What errors and saved states call the device.
    fn kind(&self) -> String {
        format!("virtio-{}", self.device_type)
    }

    /// The queues as `state` has them.
    fn restored_queues(&self, state: &TransportState<D::State>) -> Result<Vec<Option<Queue>>, String> {
        if state.queues.iter().all(Option::is_none) {
            return Ok(Vec::new());
        }
        let has = |bit| state.status & bit != 0;
        if !has(VIRTIO_CONFIG_S_DRIVER_OK) || has(VIRTIO_CONFIG_S_FAILED) {
            return Err("it has queues at work without a driver".to_owned());
        }
        let mut queues = state.registers.queues(&self.memory).map_err(|error| error.to_string())?;
        if state.queues.len() > queues.len() {
            return Err(format!("it has {} queues, not {}", state.queues.len(), queues.len()));
        }
        let positions = state.queues.iter().copied().chain(std::iter::repeat(None));
        for (queue, position) in queues.iter_mut().zip(positions) {
            match (queue.as_mut(), position) {
                (Some(queue), Some(position)) => queue.set_state(position),
                (None, Some(_)) => return Err("it works on a queue that the driver left disabled".to_owned()),
                (_, None) => *queue = None,
            }
        }
        Ok(queues)
    }
}

impl<D: VirtioDevice> Suspend for Transport<D> {
    fn suspend(&self) -> Result<(), SuspendError> {
        let mut setup = lock(&self.setup);
        if setup.suspended.is_some() {
            return Ok(());
        }
        let queues = lock(&self.device).suspend().map_err(|error| match error {
            StopError::Unsupported => SuspendError::Unsupported(self.kind()),
            error => SuspendError::Stop { device: self.kind(), source: error.into() },
        })?;
        setup.suspended = Some(Suspended { queues, restored: None });
        Ok(())
    }

    fn save(&self) -> Result<Section, SuspendError> {
        let setup = lock(&self.setup);
        let Some(Suspended { queues, restored }) = &setup.suspended else {
            return Err(SuspendError::NotSuspended(self.kind()));
        };
        let SignalState { status, interrupt_status, config_generation } = self.signals.state();
        let own = restored.is_none().then(|| lock(&self.device).state());
        let state = TransportState {
            registers: setup.registers.clone(),
            status,
            interrupt_status,
            config_generation,
            queues: queues.iter().map(|queue| queue.as_ref().map(Queue::state)).collect(),
            device: restored.as_ref().or(own.as_ref()),
        };
        Section::new(self.kind(), VERSION, &state)
    }

    fn restore(&self, section: &Section) -> Result<(), SuspendError> {
        let mut setup = lock(&self.setup);
        if self.signals.status() != 0 || setup.suspended.is_some() {
            return Err(SuspendError::InUse(self.kind()));
        }
        let state: TransportState<D::State> = section.state(&self.kind(), VERSION)?;
        let causes = VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG;
        if state.status & !STATUS != 0 || state.interrupt_status & !causes != 0 {
            return Err(SuspendError::Invalid("it has bits of a status that do not exist".to_owned()));
        }
        if !setup.registers.accept(&state.registers, self.offered) {
            let why = "the device it is of had other queues, or offered other features";
            return Err(SuspendError::Invalid(why.to_owned()));
        }
        let queues = self.restored_queues(&state).map_err(SuspendError::Invalid)?;
        let TransportState { registers, status, interrupt_status, config_generation, device, .. } = state;
        self.signals.restore(SignalState { status, interrupt_status, config_generation });
        self.show(&registers);
        setup.registers = registers;
        setup.suspended = Some(Suspended { queues, restored: Some(device) });
        Ok(())
    }

    fn end(&self) {
        // One that is held is busy with a message to its thread, and ends when it is dropped.
        if let Ok(mut device) = self.device.try_lock() {
            device.end();
        }
    }

    fn resume(&self) -> Result<(), SuspendError> {
        let mut setup = lock(&self.setup);
        let Some(Suspended { queues, restored }) = setup.suspended.take() else { return Ok(()) };
        let at_work: Vec<u16> =
            (0..).zip(&queues).filter(|(_, queue)| queue.is_some()).map(|(index, _)| index).collect();
        let activation = (!at_work.is_empty()).then(|| self.activation(&setup.registers, queues));
        let mut device = lock(&self.device);
        let state = restored.unwrap_or_else(|| device.state());
        if self.signals.status() & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.signals.start();
        }
        if let Err(error) = device.resume(activation, state) {
            self.signals.needs_reset();
            return Err(SuspendError::Start { device: self.kind(), source: error.into() });
        }
        self.signals.set_config(&device.config_space());
        drop(device);
        for index in at_work {
            // What the driver made available in the meantime, and what it was signalled for, may have got lost.
            self.signals.notify_again(index);
            self.signals.queue_used(index);
        }
        self.signals.raise_config_again();
        Ok(())
    }
}
