//! A driver that does whatever a fuzzer makes up: sane chains, insane ones, and anything at all in memory and
//! registers. It stands where a guest stands: at the transport's registers and in guest memory.

pub mod altered;
mod ledger;
pub mod tar_pieces;

use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use devices::virtio::events::DeviceEvents;
use devices::virtio::mmio::MmioTransport;
use devices::virtio::{MAX_CHAIN, Spent, VirtioDevice};
use devices::{BusDevice, Interrupt, Section, Suspend};
use event_manager::{EventManager, SubscriberOps};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use virtio_bindings::virtio_config as status;
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use virtio_bindings::virtio_mmio as reg;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use self::ledger::Ledger;

/// Guest memory: what addresses of 16 bits reach, and the rings of queues behind it.
pub const MEMORY: usize = 0x6_0000;
/// Memory that buffers may lie in and that the process itself can't touch, as a file that the guest has as memory may
/// have been cut off: system calls fail there, and a device that reads or writes it by itself ends the run. It is right
/// behind the rest, and shorter than what chains reach.
const DMA_ONLY: (u64, usize) = (MEMORY as u64, 0x8000);
/// The most that any turn of any queue may cost: the largest budget of a device, and the chain that goes beyond it.
const MOST_PER_TURN: Spent =
    Spent { descriptors: 8192 + MAX_CHAIN as u64, bytes: 96 << 20, host_calls: 1024 + MAX_CHAIN as u64 };
const RINGS: u64 = 0x1_0000;
const RINGS_LENGTH: u64 = 0x4000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
/// Flags of a descriptor (2.7.5).
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// The most steps of one run: what is found in more is found in fewer.
pub const MAX_STEPS: usize = 100;
/// The most rounds of the event loop after a step: a device may have itself notified again and again.
const MAX_ROUNDS: usize = 8;
/// How long one look at a device's thread takes, and how many looks there are in a run: what a thread has not done by
/// then is done later, or when the device is reset.
const LOOK: Duration = Duration::from_micros(20);
const MAX_LOOKS: usize = 200;
/// The most looks after one step.
const LOOKS_A_STEP: usize = 10;
/// How long a device may take beyond its deadlines, on a busy machine.
const SLACK: Duration = Duration::from_secs(4);
/// How often a call waits for a stalled host in a run. Before the next one the host goes on.
const MAX_WAITS: usize = 3;

/// A buffer of a chain.
#[derive(Arbitrary, Debug)]
pub struct Buffer {
    /// Where it is; some addresses are outside of memory.
    at: u32,
    length: u16,
    /// The flags of the descriptor but for NEXT.
    flags: u8,
}

/// What the driver does.
#[derive(Arbitrary, Debug)]
pub enum Step {
    /// Writes to memory.
    Write { at: u16, bytes: Vec<u8> },
    /// Writes into the rings of a queue.
    WriteRing { queue: u8, at: u16, value: u16 },
    /// Makes a chain of these buffers available and notifies the device.
    Chain { queue: u8, buffers: Vec<Buffer> },
    /// Notifies the device of a queue.
    Notify { queue: u8 },
    /// Writes a register.
    SetRegister { offset: u8, value: u32 },
    /// Reads registers and config space.
    Read { offset: u16, length: u8 },
    /// Writes the config space.
    SetConfig { offset: u8, value: u64, length: u8 },
    /// Resets the device and sets it up again.
    Reset { declined: u64, halvings: u8 },
    /// Suspends the device, saves it, and resumes it.
    Suspend,
    /// Suspends the device, saves it, and goes on with a new one that takes over its state.
    Replace,
    /// The host's side stalls: it neither takes nor gives, nor goes.
    Stall,
    /// The host's side goes on.
    Release,
}

/// The host's side of a device, which can stall.
pub trait HostSide {
    /// Takes and gives nothing from now on.
    fn stall(&mut self) {}
    /// Goes on, and takes what has been waiting. It may be called again and again.
    fn release(&mut self) {}
}

/// A device without anything on the host that can stall.
impl HostSide for () {}

/// A whole run.
#[derive(Arbitrary, Debug)]
pub struct Script<S = Step> {
    /// Those of the offered features that the driver declines.
    pub declined: u64,
    /// How often the largest size of a queue is halved.
    pub halvings: u8,
    /// What happens.
    pub steps: Vec<S>,
}

/// A device at its transport, and the driver.
pub struct Rig<D: VirtioDevice> {
    /// Makes the device, and another one like it once that is gone.
    make: Box<dyn FnMut() -> D>,
    memory: Arc<GuestMemoryMmap>,
    line: Arc<dyn Interrupt>,
    /// `None` while the device is replaced.
    parts: Option<Parts<D>>,
    queues: u64,
    /// The size of each queue.
    sizes: Vec<u16>,
    /// The next descriptor and the available index of each queue.
    next: Vec<(u16, u16)>,
    /// How many looks are left.
    looks: usize,
    host: Box<dyn HostSide>,
    /// How long one exchange of the device with its thread or back end may take.
    deadline: Duration,
    is_stalled: bool,
    /// How many calls have waited for a stalled host.
    waits: usize,
    /// What is due from the device.
    ledger: Ledger,
    /// The queues whose chains the device answers all, once the host goes on.
    answered: &'static [usize],
}

/// What goes with a device.
struct Parts<D: VirtioDevice> {
    // Dropped first: it shares the device with the transport.
    events: EventManager<DeviceEvents<D>>,
    transport: MmioTransport<D>,
}

impl<D: VirtioDevice> Parts<D> {
    fn new(device: D, memory: &Arc<GuestMemoryMmap>, line: Arc<dyn Interrupt>) -> Self {
        let dma = with_dma_only(memory);
        let transport = MmioTransport::new(device, memory.clone(), line).expect("eventfds").with_dma(dma);
        let mut events = EventManager::new().expect("epoll");
        events.add_subscriber(transport.events());
        Self { events, transport }
    }

    /// No turn may have cost more than it should.
    fn check_turns(&self) {
        let spent = self.transport.meter().largest_turn();
        assert!(
            spent.descriptors <= MOST_PER_TURN.descriptors
                && spent.bytes <= MOST_PER_TURN.bytes
                && spent.host_calls <= MOST_PER_TURN.host_calls,
            "a turn cost {spent:?}"
        );
    }
}

/// Runs `script` against the devices that `make` makes, which answer all chains of the queues `answered`.
pub fn run<D: VirtioDevice>(make: impl FnMut() -> D + 'static, answered: &'static [usize], script: Script) {
    let rig = Rig::new(make, script.declined, script.halvings);
    run_on(rig.with_host((), Duration::ZERO, answered), script);
}

/// Runs `script` against the device of `rig`.
pub fn run_on<D: VirtioDevice>(mut rig: Rig<D>, script: Script) {
    for step in script.steps.iter().take(MAX_STEPS) {
        rig.step(step);
    }
    rig.end(&script);
}

impl<D: VirtioDevice> Rig<D> {
    /// Puts the device that `make` makes behind a transport and sets it up without the features `declined`, with queues
    /// of 256 descriptors `halvings` times halved.
    pub fn new(make: impl FnMut() -> D + 'static, declined: u64, halvings: u8) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory");
        Self::over(make, memory, Arc::new(AtomicUsize::new(0)), declined, halvings)
    }

    /// The same with a memory and an interrupt of the caller's. The memory has [`MEMORY`] bytes from address 0 on.
    pub fn over(
        mut make: impl FnMut() -> D + 'static,
        memory: GuestMemoryMmap,
        line: Arc<dyn Interrupt>,
        declined: u64,
        halvings: u8,
    ) -> Self {
        let memory = Arc::new(memory);
        let device = make();
        let queues = device.queue_sizes().len();
        let parts = Some(Parts::new(device, &memory, line.clone()));
        let (make, next) = (Box::new(make), vec![(0, 0); queues]);
        let mut rig = Self {
            make,
            memory,
            line,
            parts,
            queues: queues as u64,
            sizes: vec![0; queues],
            next,
            looks: MAX_LOOKS,
            host: Box::new(()),
            deadline: Duration::ZERO,
            is_stalled: false,
            waits: 0,
            ledger: Ledger::default(),
            answered: &[],
        };
        rig.set_up(declined, halvings);
        rig
    }

    /// Lets `host` stall. `deadline` is how long one exchange of the device with its thread or back end may take, zero
    /// where it does not wait for the host. Chains of the queues `answered` have to be answered, each once, where the
    /// host goes on and the driver has kept to the rules.
    #[must_use]
    pub fn with_host(
        mut self,
        host: impl HostSide + 'static,
        deadline: Duration,
        answered: &'static [usize],
    ) -> Self {
        (self.host, self.deadline, self.answered) = (Box::new(host), deadline, answered);
        self
    }

    fn transport(&self) -> &MmioTransport<D> {
        &self.parts.as_ref().expect("there is a device").transport
    }

    /// The device, as what controls it from the host's side has it.
    pub fn device(&self) -> MutexGuard<'_, D> {
        self.transport().device().lock().expect("no panic")
    }

    /// The same, to be shared.
    pub fn shared_device(&self) -> Arc<Mutex<D>> {
        self.transport().device().clone()
    }

    /// Does `step`, and lets the device do what comes of it.
    pub fn step(&mut self, step: &Step) {
        let may_wait =
            matches!(step, Step::Reset { .. } | Step::SetRegister { .. } | Step::Suspend | Step::Replace);
        if may_wait && self.waits >= MAX_WAITS {
            self.release();
        }
        let start = Instant::now();
        self.act(step);
        self.check_time(start);
        if self.is_stalled && may_wait && start.elapsed() >= self.deadline {
            self.waits += 1;
        }
        self.pump();
    }

    /// What began at `start` may have waited for the device's thread a few times, and each time for the deadline.
    fn check_time(&self, start: Instant) {
        let took = start.elapsed();
        assert!(took < 4 * self.deadline + SLACK, "it took {took:?}");
    }

    fn release(&mut self) {
        self.is_stalled = false;
        self.host.release();
    }

    /// Whether the host's side is stalled.
    pub fn is_stalled(&self) -> bool {
        self.is_stalled
    }

    /// Whether a chain of `descriptors` has room in `queue`.
    pub fn has_room(&self, queue: usize, descriptors: usize) -> bool {
        self.ledger.has_room(queue, self.next[queue].0, descriptors)
    }

    /// Ends the run of `script`: what is due is answered, or, in half of the runs, the device goes as it is.
    pub fn end<S>(&mut self, script: &Script<S>) {
        if script.declined >> 63 == 0 {
            self.settle(|_| ());
        }
    }

    /// The host goes on, and then the device has to answer what is due. `meanwhile` is what driver and host do for that
    /// again and again.
    pub fn settle(&mut self, mut meanwhile: impl FnMut(&mut Self)) {
        let start = Instant::now();
        loop {
            self.release();
            meanwhile(self);
            self.pump();
            let status = self.get(reg::VIRTIO_MMIO_STATUS);
            let is_broken =
                status & (status::VIRTIO_CONFIG_S_FAILED | status::VIRTIO_CONFIG_S_NEEDS_RESET) != 0;
            if is_broken || status & status::VIRTIO_CONFIG_S_DRIVER_OK == 0 || !self.ledger.keeps_rules() {
                return;
            }
            let open = || self.answered.iter().map(|&queue| (queue, self.ledger.open(queue)));
            if open().all(|(_, open)| open == 0) {
                return;
            }
            let left = || open().collect::<Vec<_>>();
            assert!(start.elapsed() < SLACK, "chains of (queue, count) are not answered: {:?}", left());
            std::thread::sleep(LOOK);
        }
    }

    /// Makes a chain of `buffers` (address, length, flags) available and notifies the device.
    pub fn chain(&mut self, queue: usize, buffers: &[(u64, u32, u16)]) {
        self.add_chain(queue, buffers);
        self.pump();
    }

    /// Writes to memory.
    pub fn write(&mut self, at: u64, bytes: &[u8]) {
        if self.overlaps_rings(at, bytes.len() as u64) {
            self.ledger.end();
        }
        let _ = self.memory.write_slice(bytes, GuestAddress(at));
    }

    fn overlaps_rings(&self, at: u64, length: u64) -> bool {
        at < RINGS + self.queues * RINGS_LENGTH && at + length > RINGS
    }

    fn set(&self, register: u32, value: u32) {
        self.transport().write(register.into(), &value.to_le_bytes());
    }

    fn get(&self, register: u32) -> u32 {
        let mut value = [0; 4];
        self.transport().read(register.into(), &mut value);
        u32::from_le_bytes(value)
    }

    /// Goes through the initialization (3.1.1) as [`new`](Self::new) says.
    fn set_up(&mut self, declined: u64, halvings: u8) {
        let is_reset = self.reset();
        let mut value = status::VIRTIO_CONFIG_S_ACKNOWLEDGE | status::VIRTIO_CONFIG_S_DRIVER;
        self.set(reg::VIRTIO_MMIO_STATUS, value);
        for (half, wanted) in [(0, !declined as u32), (1, (!declined >> 32) as u32 | 1)] {
            self.set(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, half);
            let offered = self.get(reg::VIRTIO_MMIO_DEVICE_FEATURES);
            self.set(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
            self.set(reg::VIRTIO_MMIO_DRIVER_FEATURES, offered & wanted);
        }
        value |= status::VIRTIO_CONFIG_S_FEATURES_OK;
        self.set(reg::VIRTIO_MMIO_STATUS, value);
        for queue in 0..self.queues as u32 {
            self.set(reg::VIRTIO_MMIO_QUEUE_SEL, queue);
            let size = (256 >> (halvings % 9)).min(self.get(reg::VIRTIO_MMIO_QUEUE_NUM_MAX)).max(1);
            self.sizes[queue as usize] = size as u16;
            self.set(reg::VIRTIO_MMIO_QUEUE_NUM, size);
            let rings = self.rings(queue as usize) as u32;
            self.set(reg::VIRTIO_MMIO_QUEUE_DESC_LOW, rings);
            self.set(reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, rings + AVAILABLE as u32);
            self.set(reg::VIRTIO_MMIO_QUEUE_USED_LOW, rings + USED as u32);
            self.set(reg::VIRTIO_MMIO_QUEUE_READY, 1);
            let _ = self.memory.write_slice(&[0; 0x4000], GuestAddress(rings.into()));
        }
        self.next.fill((0, 0));
        if is_reset {
            self.ledger.begin(&self.sizes);
        }
        self.set(reg::VIRTIO_MMIO_STATUS, value | status::VIRTIO_CONFIG_S_DRIVER_OK);
    }

    /// Resets the device; false where it has not stopped, and may work on the old queues yet. That may be, after the
    /// deadline, where the host is stalled; otherwise the device stops, soon if not at once.
    fn reset(&mut self) -> bool {
        self.ledger.end();
        let start = Instant::now();
        self.set(reg::VIRTIO_MMIO_STATUS, 0);
        while !self.is_stalled && self.get(reg::VIRTIO_MMIO_STATUS) != 0 {
            assert!(start.elapsed() < SLACK, "a reset fails though the host answers");
            self.set(reg::VIRTIO_MMIO_STATUS, 0);
        }
        self.get(reg::VIRTIO_MMIO_STATUS) == 0
    }

    fn rings(&self, queue: usize) -> u64 {
        RINGS + queue as u64 % self.queues.max(1) * RINGS_LENGTH
    }

    fn act(&mut self, step: &Step) {
        match step {
            Step::Write { at, bytes } => self.write((*at).into(), bytes),
            Step::WriteRing { queue, at, value } => {
                self.ledger.end();
                let at = self.rings((*queue).into()) + u64::from(*at) % RINGS_LENGTH;
                let _ = self.memory.write_obj(*value, GuestAddress(at));
            }
            Step::Chain { queue, buffers } => {
                let buffers = buffers.iter().map(|Buffer { at, length, flags }| {
                    (u64::from(at % 0x7_0000), (*length).into(), u16::from(flags & 0b110))
                });
                self.add_chain((*queue).into(), &buffers.collect::<Vec<_>>());
            }
            Step::Notify { queue } => self.set(reg::VIRTIO_MMIO_QUEUE_NOTIFY, (*queue).into()),
            Step::SetRegister { offset, value } => {
                let register = *offset as u32 & !3;
                if register != reg::VIRTIO_MMIO_QUEUE_NOTIFY {
                    self.ledger.end();
                }
                self.set(register, *value);
            }
            Step::Read { offset, length } => {
                self.transport().read(u64::from(*offset) % 0x1000, &mut vec![0; 1 << (length % 5)]);
            }
            Step::SetConfig { offset, value, length } => {
                let bytes = &value.to_le_bytes()[..1 << (length % 4)];
                self.transport().write(0x100 + u64::from(*offset), bytes);
            }
            Step::Reset { declined, halvings } => self.set_up(*declined, *halvings),
            Step::Suspend => self.suspend(),
            Step::Replace => self.replace(),
            Step::Stall => {
                self.is_stalled = true;
                self.host.stall();
            }
            Step::Release => self.release(),
        }
    }

    /// Suspends the device, which leaves memory alone then, and resumes it. One whose back end has gone may refuse.
    fn suspend(&mut self) {
        if self.transport().suspend().is_err() {
            return;
        }
        let content = |memory: &GuestMemoryMmap| {
            let mut content = vec![0; MEMORY];
            memory.read_slice(&mut content, GuestAddress(0)).expect("it is memory");
            content
        };
        let before = content(&self.memory);
        self.pump();
        assert!(content(&self.memory) == before, "a suspended device writes to memory");
        // Only a share that a driver uses may refuse: its state is its back end's.
        let is_share = self.get(reg::VIRTIO_MMIO_DEVICE_ID) == VIRTIO_ID_FS;
        assert!(self.transport().save().is_ok() || is_share, "it can be saved");
        // What a driver broke may not be restored; the device needs a reset then.
        let _ = self.transport().resume();
    }

    /// Suspends the device and has a new one, which the host gives the same means, take over its state.
    fn replace(&mut self) {
        if self.transport().suspend().is_err() {
            return;
        }
        let Ok(section) = self.transport().save() else {
            let _ = self.transport().resume();
            return;
        };
        if let Some(parts) = self.parts.take() {
            parts.check_turns();
        }
        let new = Parts::new((self.make)(), &self.memory, self.line.clone());
        new.transport.restore(&section).expect("what was saved can be restored");
        self.parts = Some(new);
        // What a driver broke may not be resumed; the device needs a reset then.
        let _ = self.transport().resume();
    }

    /// Suspends the device and has a new one take over its state with what `alter` does to it, which no device has to have
    /// saved. What goes on where it is not taken is another new device.
    pub fn replace_by(&mut self, alter: impl FnOnce(&mut Section)) {
        // What is due from a device in such a state is not known.
        self.ledger.end();
        let saved = self.transport().suspend().and_then(|()| self.transport().save());
        let Ok(mut section) = saved else {
            let _ = self.transport().resume();
            return;
        };
        alter(&mut section);
        if let Some(parts) = self.parts.take() {
            parts.check_turns();
        }
        let start = Instant::now();
        let mut new = Parts::new((self.make)(), &self.memory, self.line.clone());
        if new.transport.restore(&section).is_err() {
            drop(new);
            new = Parts::new((self.make)(), &self.memory, self.line.clone());
        }
        let _ = new.transport.resume();
        self.parts = Some(new);
        self.check_time(start);
        self.pump();
    }

    fn add_chain(&mut self, queue: usize, buffers: &[(u64, u32, u16)]) {
        if buffers.is_empty() || self.queues == 0 {
            return;
        }
        let queue = queue % self.queues as usize;
        let rings = self.rings(queue);
        let touches_rings = |&(at, length, flags): &(u64, u32, u16)| {
            // What an indirect table has is not known.
            flags & INDIRECT != 0 || flags & WRITE != 0 && self.overlaps_rings(at, length.into())
        };
        if buffers.iter().any(touches_rings) {
            self.ledger.end();
        }
        let size = self.sizes[queue];
        let (descriptor, available) = &mut self.next[queue];
        let head = *descriptor;
        self.ledger.add(queue, head, buffers.len());
        for (index, &(at, length, flags)) in buffers.iter().enumerate() {
            let place = *descriptor % size;
            *descriptor = (place + 1) % size;
            let more = u16::from(index + 1 < buffers.len());
            let mut bytes = at.to_le_bytes().to_vec();
            bytes.extend(length.to_le_bytes());
            bytes.extend((flags | more).to_le_bytes());
            bytes.extend(descriptor.to_le_bytes());
            let _ = self.memory.write_slice(&bytes, GuestAddress(rings + 16 * u64::from(place)));
        }
        let slot = rings + AVAILABLE + 4 + 2 * u64::from(*available % size);
        let _ = self.memory.write_obj(head % size, GuestAddress(slot));
        *available = available.wrapping_add(1);
        let _ = self.memory.write_obj(*available, GuestAddress(rings + AVAILABLE + 2));
        self.set(reg::VIRTIO_MMIO_QUEUE_NOTIFY, queue as u32);
    }

    /// Runs the event loop until nothing is left to do, and gives a device's threads a moment.
    pub fn pump(&mut self) {
        for _ in 0..MAX_ROUNDS {
            let events = self.parts.as_mut().map(|parts| &mut parts.events).expect("there is a device");
            if events.run_with_timeout(0).expect("the event loop runs") == 0 {
                break;
            }
        }
        // Threads have stopped where nothing changes from one look to the next.
        let mut seen = self.used_by_threads();
        for _ in 0..LOOKS_A_STEP.min(self.looks * usize::from(!seen.is_empty())) {
            self.looks -= 1;
            std::thread::sleep(LOOK);
            let now = self.used_by_threads();
            if now == seen {
                break;
            }
            seen = now;
        }
        for queue in 0..self.queues as usize {
            self.ledger.collect(&self.memory, queue, self.rings(queue) + USED);
        }
    }

    /// The used index of each queue that a thread of the device's serves.
    fn used_by_threads(&self) -> Vec<Option<u16>> {
        let device = self.device();
        let queues = (0..self.queues as u16).filter(|&queue| device.reads_notifier(queue));
        let used = |queue: u16| self.memory.read_obj(GuestAddress(self.rings(queue.into()) + USED + 2)).ok();
        queues.map(used).collect()
    }
}

impl<D: VirtioDevice> Drop for Rig<D> {
    /// Resets the device, which waits for its threads; in every other setup, the device ends as it is. That may be with
    /// a stalled host: it does not take long then, and nothing is left once the host goes on.
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let start = Instant::now();
        let size = self.sizes.first().copied().unwrap_or_default();
        if size.leading_zeros() % 2 == 0 {
            self.set(reg::VIRTIO_MMIO_STATUS, 0);
        }
        if let Some(parts) = self.parts.take() {
            parts.check_turns();
        }
        self.check_time(start);
        self.release();
        // What works on a request has the memory.
        let released = Instant::now();
        while Arc::strong_count(&self.memory) > 1 {
            assert!(released.elapsed() < SLACK, "a device that is gone uses memory");
            std::thread::sleep(LOOK);
        }
    }
}

/// `memory` and the memory that only system calls may touch.
fn with_dma_only(memory: &GuestMemoryMmap) -> Arc<GuestMemoryMmap> {
    let (at, length) = DMA_ONLY;
    let region = MmapRegionBuilder::new(length)
        .with_mmap_prot(libc::PROT_NONE)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
        .build()
        .expect("memory");
    let region = GuestRegionMmap::new(region, GuestAddress(at)).expect("it has an address");
    Arc::new(memory.insert_region(Arc::new(region)).expect("it is behind the rest"))
}

/// A directory of this process alone, for sockets; made once, and left to who cleans temporary files.
pub fn directory() -> &'static std::path::Path {
    static PATH: std::sync::OnceLock<std::path::PathBuf> = std::sync::OnceLock::new();
    PATH.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("mvm-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory can be made");
        path
    })
}

/// A file in memory of `length` bytes, and its path.
pub fn memory_file(length: u64) -> (std::fs::File, std::path::PathBuf) {
    // SAFETY: the name is a string with its zero; the descriptor that is returned is new.
    let file = unsafe {
        let fd = libc::memfd_create(c"fuzz".as_ptr(), 0);
        assert!(fd >= 0, "a file in memory can be made");
        std::fs::File::from_raw_fd(fd)
    };
    file.set_len(length).expect("a file in memory can have any size");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
    (file, path)
}

/// What `open` opens and locks. Another device may be about to let go of it.
pub fn opened<T, E: std::fmt::Debug>(open: impl Fn() -> Result<T, E>) -> T {
    let start = Instant::now();
    loop {
        match open() {
            Ok(opened) => return opened,
            Err(_) if start.elapsed() < SLACK => std::thread::yield_now(),
            Err(error) => panic!("it does not open: {error:?}"),
        }
    }
}
