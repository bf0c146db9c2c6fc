//! What a driver sees of a block device.

mod composed;
mod errors;
mod hostile;
mod limits;
mod lost;
mod model;
mod pmem;
mod requests;
mod resized;
mod slots;
mod stalls;
mod suspended;

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

use super::super::mailbox::DEADLINE;
use super::super::rate_limit::RateLimits;
use super::super::testing::{Driver, FREE, WRITE};
use super::super::{Activation, QueueState, VirtioDevice};
use super::engine::Engine;
use super::{Block, Disk, DiskId, ImageFormat, Valve};

/// Where headers, status bytes and data are, one after another.
const HEADERS: u64 = FREE;
const STATUSES: u64 = FREE + 0x2000;
const DATA: u64 = FREE + 0x4000;

const UNANSWERED: u8 = 0xee;

/// The two ways of I/O; every test of requests goes both.
#[derive(Clone, Copy, Debug)]
enum With {
    Uring,
    Direct,
}

const BOTH: [With; 2] = [With::Uring, With::Direct];

impl With {
    fn engine(self) -> Engine {
        match self {
            Self::Uring => {
                let engine = Engine::open();
                assert!(matches!(engine, Engine::Uring(_)), "this host has no io_uring to test");
                engine
            }
            Self::Direct => Engine::direct(),
        }
    }
}

/// A driver with a block device.
struct Rig {
    driver: Driver,
    block: Block,
    requests: u64,
}

impl Rig {
    fn new(with: With, path: &Path, read_only: bool) -> Self {
        Self::with_driver(with, path, read_only, Driver::with_event_idx(256))
    }

    fn with_driver(with: With, path: &Path, read_only: bool, driver: Driver) -> Self {
        Self::with_limits(with, path, read_only, driver, RateLimits::default())
    }

    fn with_limits(with: With, path: &Path, read_only: bool, driver: Driver, limits: RateLimits) -> Self {
        let disk = Disk::open(path, read_only, ImageFormat::Detect).unwrap();
        let engine = with.engine();
        Self::with_engine(disk, engine, driver, limits)
    }

    fn with_engine(disk: Disk, engine: Engine, driver: Driver, limits: RateLimits) -> Self {
        let id = DiskId::new("disk-1").unwrap();
        let mut block = Block::with_engine(disk, id, limits, engine, DEADLINE).unwrap();
        block.activate(driver.activation(1 << VIRTIO_BLK_F_FLUSH)).unwrap();
        Self { driver, block, requests: 0 }
    }

    /// A device on a disk that does not answer until `valve` is opened; whose thread is stuck meanwhile, if it
    /// `blocks`.
    fn stalled(path: &Path, valve: &Valve, blocks: bool) -> Self {
        let disk = Disk::open(path, false, ImageFormat::Detect).unwrap();
        let mut block = Block::stalled(disk, valve, blocks, Duration::from_millis(100)).unwrap();
        let driver = Driver::with_event_idx(256);
        block.activate(driver.activation(1 << VIRTIO_BLK_F_FLUSH)).unwrap();
        Self { driver, block, requests: 0 }
    }

    /// A device that has just been notified of a hundred requests.
    fn busy(with: With, path: &Path) -> Self {
        let mut rig = Self::new(with, path, false);
        for i in 0..50 {
            rig.add(VIRTIO_BLK_T_OUT, i % 8, &[(DATA, 512, 0)]);
            rig.add(VIRTIO_BLK_T_FLUSH, 0, &[]);
        }
        rig.notify();
        rig
    }

    fn notify(&self) {
        self.driver.notifier.write(1).unwrap();
    }

    /// Suspends the device and has it go on at once. What was in flight is answered then. Returns where the queue was.
    fn settle(&mut self) -> QueueState {
        let mut queues = self.block.suspend().unwrap();
        let state = queues[0].as_ref().unwrap().state();
        let activation = self.driver.activation(1 << VIRTIO_BLK_F_FLUSH);
        let activation = Activation { queues: std::mem::take(&mut queues), ..activation };
        let saved = self.block.state();
        self.block.resume(Some(activation), saved).unwrap();
        state
    }

    fn header(&mut self, kind: u32, sector: u64) -> (u64, u64) {
        let (header, status) = (HEADERS + 16 * self.requests, STATUSES + self.requests);
        self.requests = (self.requests + 1) % 256;
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend(sector.to_le_bytes());
        self.driver.write(header, &bytes);
        self.driver.write(status, &[UNANSWERED]);
        (header, status)
    }

    /// Makes a request with `data` buffers available and returns where its status will be.
    fn add(&mut self, kind: u32, sector: u64, data: &[(u64, u32, u16)]) -> u64 {
        let (header, status) = self.header(kind, sector);
        let mut buffers = vec![(header, 16, 0)];
        buffers.extend(data);
        buffers.push((status, 1, WRITE));
        self.driver.add(&buffers);
        status
    }

    /// Has the device use `count` chains.
    fn run(&mut self, count: u16) {
        self.notify();
        wait_until(|| self.driver.used_count() >= count);
    }

    /// Makes one request; returns its status and the length written.
    fn request(&mut self, kind: u32, sector: u64, data: &[(u64, u32, u16)]) -> (u8, u32) {
        let status = self.add(kind, sector, data);
        self.run(1);
        let used = self.driver.take_used();
        assert_eq!(used.len(), 1);
        (self.driver.read(status, 1)[0], used[0].1)
    }

    fn read(&mut self, sector: u64, length: u32) -> (u8, u32, Vec<u8>) {
        let (status, written) = self.request(VIRTIO_BLK_T_IN, sector, &[(DATA, length, WRITE)]);
        (status, written, self.driver.read(DATA, length as usize))
    }

    fn write(&mut self, sector: u64, bytes: &[u8]) -> (u8, u32) {
        self.driver.write(DATA, bytes);
        self.request(VIRTIO_BLK_T_OUT, sector, &[(DATA, u32::try_from(bytes.len()).unwrap(), 0)])
    }

    /// Sends the one range of a discard or write-zeroes request.
    fn range(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> (u8, u32) {
        let mut bytes = sector.to_le_bytes().to_vec();
        bytes.extend(sectors.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        self.driver.write(DATA, &bytes);
        self.request(kind, 0, &[(DATA, 16, 0)])
    }
}

/// Waits for what a device's thread does; one that has not done it after ten seconds never will.
fn wait_until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "the device never got there");
        std::thread::yield_now();
    }
}

/// A file of `sectors` sectors, each filled with its number plus one.
fn image(sectors: u8) -> tempfile::NamedTempFile {
    image_in(&std::env::temp_dir(), sectors)
}

fn image_in(directory: &Path, sectors: u8) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new_in(directory).unwrap();
    for sector in 0..sectors {
        file.write_all(&[sector + 1; 512]).unwrap();
    }
    file
}

fn content(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut File::open(path).unwrap(), &mut bytes).unwrap();
    bytes
}
