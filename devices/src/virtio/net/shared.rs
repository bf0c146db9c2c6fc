//! What the device and its threads share.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::config;
use super::device::NetMetrics;
use super::mac::MacAddress;
use super::receive::ReceiveMode;
use super::taps::{TapSettings, Taps};
use crate::lock;
use crate::virtio::{Activation, Meter, Queue, VirtioInterrupt};

/// What the driver can change by the control queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) mac: MacAddress,
    /// By how many pairs of queues packets come.
    pub(super) pairs: u16,
    /// The offloads of packets to the guest, as feature bits.
    pub(super) offloads: u64,
}

/// What a device and its threads share for its life.
pub(super) struct Shared {
    pub(super) settings: Mutex<Settings>,
    /// The most pairs of queues, and the MTU, as the driver is told.
    fixed: (u16, Option<u16>),
    /// Whether the backend is there.
    pub(super) link_is_up: AtomicBool,
    /// Whether the tap is set up for the driver. Until then, nothing is received.
    tap_is_set_up: AtomicBool,
    pub(super) metrics: Arc<NetMetrics>,
}

impl Shared {
    pub(super) fn new(settings: Settings, most_pairs: u16, mtu: Option<u16>) -> Self {
        Self {
            settings: Mutex::new(settings),
            fixed: (most_pairs, mtu),
            link_is_up: AtomicBool::new(true),
            tap_is_set_up: AtomicBool::new(false),
            metrics: Arc::default(),
        }
    }

    /// The config space as it is now.
    pub(super) fn config_space(&self) -> Vec<u8> {
        let mac = lock(&self.settings).mac;
        let (most_pairs, mtu) = self.fixed;
        config::space(mac, self.link_is_up.load(Ordering::Acquire), most_pairs, mtu).to_vec()
    }

    /// How the driver wants the tap.
    pub(super) fn tap_settings(&self) -> TapSettings {
        let Settings { pairs, offloads, .. } = *lock(&self.settings);
        TapSettings { pairs, offloads }
    }

    pub(super) fn is_tap_set_up(&self) -> bool {
        self.tap_is_set_up.load(Ordering::Acquire)
    }

    /// Has nothing received until the tap is set up.
    pub(super) fn begin_tap_set_up(&self) {
        self.tap_is_set_up.store(false, Ordering::Release);
    }

    /// Takes note of how the set-up of the tap went.
    ///
    /// # Errors
    ///
    /// That of `result`, except for a tap that is gone: the pair's thread finds that out and takes the link down.
    pub(super) fn tap_result(&self, result: io::Result<()>) -> io::Result<()> {
        match result {
            Err(error) if error.raw_os_error() != Some(libc::EBADFD) => Err(error),
            _ => {
                self.tap_is_set_up.store(true, Ordering::Release);
                Ok(())
            }
        }
    }

    /// Tries to set the tap up once more; false if that has to wait. Where the host refuses, the device needs a reset.
    pub(super) fn set_up_tap(
        &self,
        taps: &mut Taps,
        settings: TapSettings,
        interrupt: &dyn VirtioInterrupt,
    ) -> bool {
        let result = match taps.try_set(settings) {
            Ok(None) => return false,
            result => result.map(drop),
        };
        if let Err(error) = self.tap_result(result) {
            tracing::error!(%error, "cannot set up a tap for the guest's driver");
            interrupt.needs_reset();
        }
        true
    }
}

/// A driver that has activated the device.
pub(super) struct Driver {
    memory: Arc<GuestMemoryMmap>,
    dma: Arc<GuestMemoryMmap>,
    notifiers: Arc<[EventFd]>,
    interrupt: Arc<dyn VirtioInterrupt>,
    meter: Arc<Meter>,
    /// The feature bits that it accepted.
    pub(super) features: u64,
    /// How it takes packets.
    pub(super) mode: ReceiveMode,
    /// How many pairs of queues it knows.
    pub(super) pairs: u16,
    /// The index of the control queue, if it negotiated one.
    pub(super) control_queue: Option<u16>,
}

impl Driver {
    /// The driver of `activation`.
    pub(super) fn new(
        activation: &Activation,
        mode: ReceiveMode,
        pairs: u16,
        control_queue: Option<u16>,
    ) -> Self {
        let Activation { memory, dma, notifiers, interrupt, meter, features, .. } = activation;
        Self {
            memory: Arc::clone(memory),
            dma: Arc::clone(dma),
            notifiers: Arc::clone(notifiers),
            interrupt: Arc::clone(interrupt),
            meter: Arc::clone(meter),
            features: *features,
            mode,
            pairs,
            control_queue,
        }
    }

    /// An activation with some of its queues, each with its index.
    pub(super) fn activation(&self, queues: Vec<(u16, Queue)>) -> Activation {
        let length = queues.iter().map(|(index, _)| usize::from(*index) + 1).max().unwrap_or(0);
        let mut all: Vec<Option<Queue>> = std::iter::repeat_with(|| None).take(length).collect();
        for (index, queue) in queues {
            if let Some(place) = all.get_mut(usize::from(index)) {
                *place = Some(queue);
            }
        }
        Activation {
            memory: Arc::clone(&self.memory),
            dma: Arc::clone(&self.dma),
            queues: all,
            notifiers: Arc::clone(&self.notifiers),
            features: self.features,
            interrupt: Arc::clone(&self.interrupt),
            meter: Arc::clone(&self.meter),
        }
    }
}
