//! A driver as a guest would have one, packet by packet.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tempfile::TempDir;
use vm_memory::{GuestAddress, GuestRegionMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::virtio::events::drain;
use crate::virtio::testing::{Driver, WRITE, wait_readable};
use crate::virtio::vsock::header::LENGTH;
use crate::virtio::vsock::{Vsock, VsockListener, VsockState, dial};
use crate::virtio::{Activation, Queue, QueueState, VirtioDevice, VirtioInterrupt};

/// The length of a header, as descriptors have it.
pub(in crate::virtio::vsock) const HEADER: u32 = 44;
/// The guest's CID.
pub(in crate::virtio::vsock) const CID: u32 = 52;
/// What the guest keeps for a connection, as it tells the device.
pub(super) const GUEST_BUFFER: u32 = 0x1_0000;
/// How many buffers the guest has to receive into, and their size.
const BUFFERS: u64 = 8;
const BUFFER: u32 = 4096 + 44;
/// Where they are, and where packets to send are written to.
const RECEIVE: u64 = 0x1_0000;
const SEND: u64 = 0x2_0000;
const HEADERS: u64 = 0x5_0000;
/// A region that is for system calls only, as a file of persistent memory is.
pub(super) const DMA_ONLY: u64 = 0x4000_0000;
pub(super) const DMA_ONLY_SIZE: usize = 0x1_0000;

/// Tells the test of interrupts, in place of a counter that could only be looked at.
pub(super) struct Signal {
    event: EventFd,
    pub(super) broken: AtomicBool,
    /// How often the device asked for a reset.
    pub(super) resets_asked: AtomicUsize,
    notifiers: [EventFd; 3],
}

impl VirtioInterrupt for Signal {
    fn queue_used(&self, _index: u16) {
        self.event.write(1).unwrap();
    }
    fn config_changed(&self, _space: &[u8]) {}
    fn config_updated(&self, _space: &[u8]) {}
    fn needs_reset(&self) {
        self.resets_asked.fetch_add(1, Ordering::SeqCst);
        self.broken.store(true, Ordering::SeqCst);
        self.event.write(1).unwrap();
    }
    fn notify_again(&self, index: u16) {
        self.notifiers[usize::from(index)].write(1).unwrap();
    }
}

thread_local! {
    /// The devices of this thread's test have a process that connects for them.
    pub(super) static DIALED: Cell<bool> = const { Cell::new(false) };
}

/// The other process is a thread here, which ends with the device.
fn device(listener: VsockListener, most: usize) -> Vsock {
    let dialer = DIALED.get().then(|| {
        let (one, other) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let path = listener.path().to_owned();
        std::thread::spawn(move || dial(&other, &path));
        one
    });
    Vsock::dialed_by(dialer, CID, listener, most).unwrap()
}

/// A guest, its device, and a directory for the host's sockets.
pub(super) struct Guest {
    pub(super) device: Vsock,
    pub(super) drivers: Vec<Driver>,
    pub(super) signal: Arc<Signal>,
    /// The buffers that the device has, by the order in which it got them.
    buffers: VecDeque<(u32, u64)>,
    received: VecDeque<(Header, Vec<u8>)>,
    posted: u64,
    directory: TempDir,
}

impl Guest {
    /// A guest with buffers to receive into.
    pub(super) fn new() -> Self {
        let mut guest = Self::without_buffers();
        guest.give_buffers();
        guest
    }

    pub(super) fn without_buffers() -> Self {
        Self::with_sockets(2000)
    }

    pub(super) fn with_sockets(most: usize) -> Self {
        let directory = TempDir::new().unwrap();
        let listener = VsockListener::open(&directory.path().join("v")).unwrap();
        let mut guest = Self {
            device: device(listener, most),
            drivers: Vec::new(),
            signal: Arc::new(Signal {
                event: EventFd::new(EFD_NONBLOCK).unwrap(),
                broken: AtomicBool::new(false),
                resets_asked: AtomicUsize::new(0),
                notifiers: [(); 3].map(|()| EventFd::new(0).unwrap()),
            }),
            buffers: VecDeque::new(),
            received: VecDeque::new(),
            posted: 0,
            directory,
        };
        guest.activate();
        guest
    }

    pub(super) fn device_reset(&mut self) {
        self.device.reset().unwrap();
    }

    /// Starts the device with empty queues.
    pub(super) fn activate(&mut self) {
        self.drivers = Driver::several(&[16, 16, 16]);
        let dma_only = GuestRegionMmap::from_range(GuestAddress(DMA_ONLY), DMA_ONLY_SIZE, None).unwrap();
        self.drivers[0].dma =
            Some(Arc::new(self.drivers[0].memory.insert_region(Arc::new(dma_only)).unwrap()));
        self.buffers.clear();
        self.received.clear();
        let [rx, tx, event] = &self.drivers[..] else { unreachable!() };
        let notifiers = [rx, tx, event].map(|driver| driver.notifier.try_clone().unwrap());
        self.signal = Arc::new(Signal {
            event: EventFd::new(EFD_NONBLOCK).unwrap(),
            broken: AtomicBool::new(false),
            resets_asked: AtomicUsize::new(0),
            notifiers,
        });
        self.device.activate(self.activation()).unwrap();
    }

    fn activation(&self) -> Activation {
        Activation { interrupt: self.signal.clone(), ..Driver::activation_of(&self.drivers, 0) }
    }

    /// Suspends the device, and gives the bytes that its state and its queues' are saved as.
    pub(super) fn suspend(&mut self) -> Vec<u8> {
        let queues: Vec<_> =
            self.device.suspend().unwrap().iter().map(|queue| queue.as_ref().map(Queue::state)).collect();
        serde_json::to_vec(&(queues, self.device.state())).unwrap()
    }

    /// Resumes the device as `saved` says, as its transport does.
    pub(super) fn resume(&mut self, saved: &[u8]) {
        let (states, state): (Vec<Option<QueueState>>, VsockState) = serde_json::from_slice(saved).unwrap();
        let mut activation = self.activation();
        for (queue, state) in activation.queues.iter_mut().zip(states) {
            match (queue.as_mut(), state) {
                (Some(queue), Some(state)) => queue.set_state(state),
                _ => *queue = None,
            }
        }
        self.device.resume(Some(activation), state).unwrap();
        self.drivers.iter().for_each(|driver| driver.notifier.write(1).unwrap());
    }

    /// Puts another device in the place of this one, which has gone with its sockets.
    pub(super) fn replace_device(&mut self) {
        let new = TempDir::new().unwrap();
        let listener = VsockListener::open(&new.path().join("v")).unwrap();
        self.device = device(listener, 2000);
        self.directory = new;
    }

    pub(super) fn give_buffers(&mut self) {
        for index in 0..BUFFERS {
            self.give_buffer(RECEIVE + index * 0x1100);
        }
    }

    fn give_buffer(&mut self, at: u64) {
        let head = self.drivers[0].add(&[(at, BUFFER, WRITE)]);
        self.buffers.push_back((head.into(), at));
        self.drivers[0].notifier.write(1).unwrap();
    }

    /// Waits for the next interrupt. False: the device asked for a reset.
    pub(super) fn wait(&self) -> bool {
        wait_readable(self.signal.event.as_raw_fd());
        drain(&self.signal.event);
        !self.signal.broken.load(Ordering::SeqCst)
    }

    /// Makes a packet available, and does not wait until the device has taken it.
    pub(super) fn post(&mut self, header: Header, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap();
        let tx = &mut self.drivers[1];
        // Those that wait have each a place of their own.
        let header_at = HEADERS + 64 * (self.posted % 16);
        self.posted += 1;
        tx.write(header_at, &header.encode());
        tx.write(SEND, payload);
        // A payload in two buffers, as Linux has it for large ones.
        let (first, second) = (length / 3, length - length / 3);
        tx.add(&[(header_at, HEADER, 0), (SEND, first, 0), (SEND + u64::from(first), second, 0)]);
        tx.notifier.write(1).unwrap();
    }

    /// Sends a packet and waits until the device has taken it.
    pub(super) fn send(&mut self, header: Header, payload: &[u8]) {
        self.post(Header { len: u32::try_from(payload.len()).unwrap(), ..header }, payload);
        while self.drivers[1].used_count() == 0 {
            assert!(self.wait());
        }
        self.drivers[1].take_used();
    }

    /// Waits for the next packet.
    pub(super) fn receive(&mut self) -> (Header, Vec<u8>) {
        loop {
            self.take_received();
            if let Some(packet) = self.received.pop_front() {
                return packet;
            }
            assert!(self.wait());
        }
    }

    /// Takes what is there; the buffers go back to the device.
    fn take_received(&mut self) {
        for (head, length) in self.drivers[0].take_used() {
            let (given, at) = self.buffers.pop_front().unwrap();
            assert_eq!(head, given);
            let header: [u8; LENGTH] = self.drivers[0].read(at, LENGTH).try_into().unwrap();
            let header = Header::decode(header);
            assert_eq!(length, HEADER + header.len);
            let payload = self.drivers[0].read(at + LENGTH as u64, header.len as usize);
            self.received.push_back((header, payload));
            self.give_buffer(at);
        }
    }

    /// The next packet has to be one without payload, and this.
    pub(super) fn expect(&mut self, op: u16, flags: u32) -> Header {
        let (header, _) = self.receive();
        assert_eq!((header.op, header.flags, header.len), (op, flags, 0), "{header:?}");
        assert_eq!((header.src_cid, header.dst_cid, header.kind), (HOST_CID, CID.into(), STREAM));
        header
    }

    /// Shows that the device has nothing to say: a packet to nowhere is answered, and nothing comes before that.
    pub(super) fn expect_silence(&mut self) {
        self.send(Header { op: op::RW, ..header(9, 9) }, b"");
        let reset = self.expect(op::RST, 0);
        assert_eq!((reset.src_port, reset.dst_port), (9, 9));
    }

    /// Receives payload of the connection until there are `count` bytes.
    pub(super) fn read(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < count {
            let (header, payload) = self.receive();
            assert_eq!(header.op, op::RW);
            bytes.extend(payload);
        }
        bytes
    }

    pub(super) fn path(&self) -> PathBuf {
        self.directory.path().join("v")
    }

    /// Listens for the guest's connections to `port`.
    pub(super) fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(format!("{}_{port}", self.path().display())).unwrap()
    }

    /// Connects to the host's `port` from the guest's, and gives the host's end.
    pub(super) fn connect(&mut self, host_port: u32, guest_port: u32) -> UnixStream {
        let listener = self.listen(host_port);
        self.connect_to(&listener, host_port, guest_port)
    }

    pub(super) fn connect_to(
        &mut self,
        listener: &UnixListener,
        host_port: u32,
        guest_port: u32,
    ) -> UnixStream {
        self.send(Header { op: op::REQUEST, ..header(host_port, guest_port) }, b"");
        let response = self.expect(op::RESPONSE, 0);
        assert_eq!((response.src_port, response.dst_port), (host_port, guest_port));
        patient(listener.accept().unwrap().0)
    }

    /// A process of the host that has written `line`.
    pub(super) fn dial(&self, line: &str) -> UnixStream {
        let mut stream = patient(UnixStream::connect(self.path()).unwrap());
        stream.write_all(line.as_bytes()).unwrap();
        stream
    }

    pub(super) fn metric(&self, name: &str) -> u64 {
        let mut found = None;
        self.device.metrics().visit(&mut |each, count| {
            if each == name {
                found = Some(count);
            }
        });
        found.unwrap()
    }
}

fn patient(stream: UnixStream) -> UnixStream {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

/// The header of a packet from the guest's port to the host's.
pub(in crate::virtio::vsock) fn header(host_port: u32, guest_port: u32) -> Header {
    Header {
        src_cid: CID.into(),
        dst_cid: HOST_CID,
        src_port: guest_port,
        dst_port: host_port,
        kind: STREAM,
        buf_alloc: GUEST_BUFFER,
        ..Header::default()
    }
}

/// Bytes that are not the same again soon.
pub(super) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| index.wrapping_mul(2_654_435_761).to_le_bytes()[2]).collect()
}

pub(super) fn read_exactly(stream: &mut UnixStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Sees that the other end will send no more.
pub(super) fn expect_end(stream: &mut UnixStream) {
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}
