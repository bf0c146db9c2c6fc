//! The driver's side of a queue, for tests: it writes rings and descriptors as a guest would, rules or not.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Activation, Meter, Queue, VirtioInterrupt};

// Not every device uses all of it.
#[allow(dead_code)]
pub(crate) mod machine;

/// Guest memory: two regions side by side, then a hole, then a third; the fourth has the rings of further queues.
pub(crate) const REGIONS: [(u64, usize); 4] =
    [(0, 0x4_0000), (0x4_0000, 0x4_0000), (0x100_0000, 0x2_0000), (FURTHER_RINGS, 0x4_0000)];
const FURTHER_RINGS: u64 = 0x200_0000;
/// Where the first queue's rings are, and what is where in them; buffers are best kept above.
const RINGS: u64 = 0x1000;
const TABLE: u64 = 0;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const RINGS_LENGTH: u64 = 0x5000;
/// The first address that no ring uses.
pub(crate) const FREE: u64 = 0x6000;

/// Descriptor flags (2.7.5).
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

pub(crate) fn memory() -> Arc<GuestMemoryMmap> {
    Arc::new(GuestMemoryMmap::from_ranges(&REGIONS.map(|(at, size)| (GuestAddress(at), size))).unwrap())
}

/// All bytes of guest memory.
pub(crate) fn dump(memory: &GuestMemoryMmap) -> Vec<(u64, Vec<u8>)> {
    let read = |(at, size): (u64, usize)| {
        let mut bytes = vec![0; size];
        memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        (at, bytes)
    };
    REGIONS.map(read).to_vec()
}

/// Counts what a device signals to its driver.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) used: AtomicUsize,
    pub(crate) needs_reset: AtomicUsize,
    pub(crate) again: AtomicUsize,
    pub(crate) config_changed: AtomicUsize,
    /// For tests that wait for a device's thread.
    signalled: (Mutex<()>, Condvar),
    /// What others raise the interrupt by.
    pub(crate) line: OnceLock<EventFd>,
}

impl Counters {
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::SeqCst)
    }
    pub(crate) fn broken(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst) > 0
    }
    fn count(&self, counter: &AtomicUsize) {
        let _lock = self.signalled.0.lock().unwrap();
        counter.fetch_add(1, Ordering::SeqCst);
        self.signalled.1.notify_all();
    }
    /// Waits until `condition` holds, which is looked at whenever the device has signalled its driver; a device
    /// that has not come to that after ten seconds never will.
    pub(crate) fn wait_until(&self, mut condition: impl FnMut() -> bool) {
        let lock = self.signalled.0.lock().unwrap();
        let limit = Duration::from_secs(10);
        let (_lock, result) = self.signalled.1.wait_timeout_while(lock, limit, |()| !condition()).unwrap();
        assert!(!result.timed_out(), "the device never got there");
    }
    /// Whether the device asked to be notified again since the last call.
    pub(crate) fn take_again(&self) -> bool {
        self.again.swap(0, Ordering::SeqCst) > 0
    }
}

impl VirtioInterrupt for Counters {
    fn queue_used(&self, _index: u16) {
        self.count(&self.used);
    }
    fn queues_used(&self, _one: u16, _other: u16) {
        self.count(&self.used);
    }
    fn queue_eventfd(&self, _index: u16) -> Option<&EventFd> {
        Some(self.line.get_or_init(|| EventFd::new(EFD_NONBLOCK).unwrap()))
    }
    fn config_changed(&self, _space: &[u8]) {
        self.count(&self.config_changed);
    }
    fn config_updated(&self, _space: &[u8]) {}
    fn needs_reset(&self) {
        self.count(&self.needs_reset);
    }
    fn notify_again(&self, _index: u16) {
        self.count(&self.again);
    }
}

/// A descriptor as it lies in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) address: u64,
    pub(crate) length: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

/// A driver of one queue.
pub(crate) struct Driver {
    rings: u64,
    pub(crate) memory: Arc<GuestMemoryMmap>,
    /// Where data may lie, where that is more than `memory`.
    pub(crate) dma: Option<Arc<GuestMemoryMmap>>,
    pub(crate) counters: Arc<Counters>,
    /// What the device's turns cost.
    pub(crate) meter: Arc<Meter>,
    /// Wakes a device that serves the queue itself.
    pub(crate) notifier: EventFd,
    size: u16,
    next_descriptor: u16,
    next_available: u16,
    next_used: u16,
    pub(crate) event_idx: bool,
}

impl Driver {
    pub(crate) fn new(size: u16) -> Self {
        Self {
            rings: RINGS,
            memory: memory(),
            dma: None,
            counters: Arc::default(),
            meter: Arc::default(),
            notifier: EventFd::new(EFD_NONBLOCK).unwrap(),
            size,
            next_descriptor: 0,
            next_available: 0,
            next_used: 0,
            event_idx: false,
        }
    }

    pub(crate) fn with_event_idx(size: u16) -> Self {
        Self { event_idx: true, ..Self::new(size) }
    }

    /// A driver of several queues of these sizes, in one memory and with one set of counters.
    pub(crate) fn several(sizes: &[u16]) -> Vec<Self> {
        let first = Self::new(16);
        let (memory, counters, meter) = (&first.memory, &first.counters, &first.meter);
        let rings = (0..).map(|index: u64| match index {
            0 => RINGS,
            index => FURTHER_RINGS + (index - 1) * RINGS_LENGTH,
        });
        let queue = |(&size, rings)| Self {
            rings,
            memory: memory.clone(),
            counters: counters.clone(),
            meter: meter.clone(),
            ..Self::new(size)
        };
        sizes.iter().zip(rings).map(queue).collect()
    }

    pub(crate) fn activation(&self, features: u64) -> Activation {
        Self::activation_of(std::slice::from_ref(self), features)
    }

    /// What a device gets whose queues are those of `drivers`.
    pub(crate) fn activation_of(drivers: &[Self], features: u64) -> Activation {
        let [first, ..] = drivers else { panic!("a driver has a queue") };
        Activation {
            memory: first.memory.clone(),
            dma: first.dma.clone().unwrap_or_else(|| first.memory.clone()),
            queues: drivers.iter().map(|driver| Some(driver.queue())).collect(),
            notifiers: drivers.iter().map(|driver| driver.notifier.try_clone().unwrap()).collect(),
            features,
            interrupt: first.counters.clone(),
            meter: first.meter.clone(),
        }
    }

    fn queue(&self) -> Queue {
        let mut queue = virtio_queue::Queue::new(self.size).unwrap();
        queue.try_set_size(self.size).unwrap();
        queue.try_set_desc_table_address(GuestAddress(self.rings + TABLE)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(self.rings + AVAILABLE)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(self.rings + USED)).unwrap();
        queue.set_event_idx(self.event_idx);
        queue.set_ready(true);
        assert!(queue.is_valid(&*self.memory));
        Queue::new(queue)
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub(crate) fn read(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    fn read_u16(&self, at: u64) -> u16 {
        self.memory.read_obj(GuestAddress(at)).unwrap()
    }

    /// Writes `descriptor` to place `index` of the table at `table`.
    pub(crate) fn describe(&self, table: u64, index: u16, descriptor: Descriptor) {
        let Descriptor { address, length, flags, next } = descriptor;
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.write(table + 16 * u64::from(index), &bytes);
    }

    /// Writes `descriptor` to the queue's own table.
    pub(crate) fn describe_own(&self, index: u16, descriptor: Descriptor) {
        self.describe(self.rings + TABLE, index, descriptor);
    }

    /// The first descriptor of the next chain.
    pub(crate) fn next_descriptor(&self) -> u16 {
        self.next_descriptor
    }

    /// Makes the chain at `head` available.
    pub(crate) fn make_available(&mut self, head: u16) {
        self.write(
            self.rings + AVAILABLE + 4 + 2 * u64::from(self.next_available % self.size),
            &head.to_le_bytes(),
        );
        self.next_available = self.next_available.wrapping_add(1);
        self.set_available_index(self.next_available);
    }

    pub(crate) fn set_available_index(&mut self, index: u16) {
        self.next_available = index;
        self.write(self.rings + AVAILABLE + 2, &index.to_le_bytes());
    }

    pub(crate) fn set_available_flags(&self, flags: u16) {
        self.write(self.rings + AVAILABLE, &flags.to_le_bytes());
    }

    /// Asks for an interrupt when the used index passes `index`.
    pub(crate) fn set_used_event(&self, index: u16) {
        self.write(self.rings + AVAILABLE + 4 + 2 * u64::from(self.size), &index.to_le_bytes());
    }

    /// How many chains were made available so far, modulo 2^16.
    pub(crate) fn available_index(&self) -> u16 {
        self.read_u16(self.rings + AVAILABLE + 2)
    }

    /// The available index from which on the device wants to be notified.
    pub(crate) fn available_event(&self) -> u16 {
        self.read_u16(self.rings + USED + 4 + 8 * u64::from(self.size))
    }

    /// Makes a chain of `buffers` (address, length, flags) available, and gives its head.
    pub(crate) fn add(&mut self, buffers: &[(u64, u32, u16)]) -> u16 {
        let head = self.next_descriptor;
        for (i, &(address, length, flags)) in buffers.iter().enumerate() {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % self.size;
            let flags = if i + 1 < buffers.len() { flags | NEXT } else { flags };
            self.describe_own(index, Descriptor { address, length, flags, next: self.next_descriptor });
        }
        self.make_available(head);
        head
    }

    /// As [`add`](Self::add), with an indirect table at `table`.
    pub(crate) fn add_indirect(&mut self, table: u64, buffers: &[(u64, u32, u16)]) -> u16 {
        for (i, &(address, length, flags)) in (0..).zip(buffers) {
            let last = usize::from(i) + 1 == buffers.len();
            let flags = if last { flags } else { flags | NEXT };
            self.describe(table, i, Descriptor { address, length, flags, next: i + 1 });
        }
        self.add(&[(table, u32::try_from(buffers.len() * 16).unwrap(), INDIRECT)])
    }

    /// The count of used chains that were not taken yet.
    pub(crate) fn used_count(&self) -> u16 {
        self.read_u16(self.rings + USED + 2).wrapping_sub(self.next_used)
    }

    /// Takes all used chains: head and written length.
    pub(crate) fn take_used(&mut self) -> Vec<(u32, u32)> {
        let mut used = Vec::new();
        while self.used_count() > 0 {
            let at = self.rings + USED + 4 + 8 * u64::from(self.next_used % self.size);
            used.push((
                self.memory.read_obj(GuestAddress(at)).unwrap(),
                self.memory.read_obj(GuestAddress(at + 4)).unwrap(),
            ));
            self.next_used = self.next_used.wrapping_add(1);
        }
        used
    }

    /// Where the device writes by itself: the used ring.
    pub(crate) fn used_ring(&self) -> std::ops::Range<u64> {
        let used = self.rings + USED;
        used..used + 6 + 8 * u64::from(self.size)
    }
}

/// Waits until one of `fds` is readable and gives its index; a device that has not come to its end after ten seconds
/// never will.
pub(crate) fn wait_any_readable(fds: &[std::os::fd::RawFd]) -> usize {
    // SAFETY: the descriptors belong to a device that the test holds.
    let fds: Vec<_> = fds.iter().map(|&fd| unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) }).collect();
    let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    let timeout = Timespec { tv_sec: 10, tv_nsec: 0 };
    poll(&mut polled, Some(&timeout)).unwrap();
    let ready = polled.iter().position(|fd| fd.revents().contains(PollFlags::IN));
    ready.expect("the device never answered")
}

/// Waits until `fd` is readable.
pub(crate) fn wait_readable(fd: std::os::fd::RawFd) {
    wait_any_readable(&[fd]);
}
