//! The exchange with a back end, on a thread of its own: `vhost` waits for each answer, and tries again on a timeout of
//! the socket, without end.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::VhostUserError;
use crate::virtio::mailbox::{self, CallError, DeviceThread, Letter, Mailbox};
use crate::virtio::{Activation, Queue, VirtioInterrupt};

/// How long a back end may take to start its queues and to stop them; a vCPU waits for that. A healthy one takes
/// milliseconds.
pub(super) const DEADLINE: Duration = mailbox::DEADLINE;
/// How long a back end may take for its first answers, while it may still be starting.
pub(super) const START_DEADLINE: Duration = Duration::from_secs(10);

/// What the transport offers to every driver, so that every back end needs it.
const NEEDED: [(u32, &str); 3] = [
    (VIRTIO_F_VERSION_1, "support for VIRTIO 1 (VIRTIO_F_VERSION_1)"),
    (VIRTIO_RING_F_INDIRECT_DESC, "support for indirect descriptors (VIRTIO_F_INDIRECT_DESC)"),
    (VIRTIO_RING_F_EVENT_IDX, "support for event indexes (VIRTIO_F_EVENT_IDX)"),
];

/// What a back end is asked for.
enum Command {
    /// To settle the protocol's features.
    Negotiate,
    /// To serve queues.
    Start(Rings),
    /// To stop its queues.
    Stop,
    /// To stop its queues, and to go on with them if the answer comes too late.
    Suspend,
}

/// What it answers.
enum Reply {
    /// The features that it offers.
    Features(u64),
    /// It serves the queues.
    Started,
    /// The queues that it served, each with the index of the next chain that it would have taken.
    Stopped(Vec<(usize, u16)>),
    Failed(VhostUserError),
}

/// What went wrong in an exchange, with what was being done.
type Failure = (&'static str, vhost::Error);

fn failed(doing: &'static str) -> impl FnOnce(vhost::Error) -> Failure {
    move |error| (doing, error)
}

impl From<Failure> for VhostUserError {
    fn from((doing, source): Failure) -> Self {
        Self::Exchange { doing, source }
    }
}

/// A back end that answers.
pub(super) struct BackEnd {
    thread: DeviceThread<Command, Reply>,
    /// The same socket, to shut down and to watch.
    socket: UnixStream,
    deadline: Duration,
    /// The feature bits that it offered.
    features: u64,
}

impl BackEnd {
    /// Negotiates with the back end at the other end of `socket`, which has to serve `queues` queues and may take as
    /// long as `deadline` for its first answers.
    ///
    /// # Errors
    ///
    /// [`VhostUserError`] says what it did wrong or lacks.
    pub(super) fn negotiate(
        socket: UnixStream,
        queues: usize,
        deadline: Duration,
    ) -> Result<Self, VhostUserError> {
        let own = socket.try_clone().map_err(VhostUserError::Host)?;
        let front_end = Frontend::from_stream(own, queues as u64);
        let exchange = Exchange { front_end, queues, rings: None };
        let thread = DeviceThread::spawn("vhost-user", move |mailbox| exchange.run(&mailbox));
        let mut back_end =
            Self { thread: thread.map_err(VhostUserError::Host)?, socket, deadline, features: 0 };
        if let Reply::Features(features) = back_end.exchange("answer", Command::Negotiate)? {
            back_end.features = features;
        }
        for (bit, what) in NEEDED {
            if back_end.features & 1 << bit == 0 {
                return Err(VhostUserError::Lacks(what));
            }
        }
        back_end.deadline = deadline.min(DEADLINE);
        Ok(back_end)
    }

    /// The feature bits that it offers to the driver.
    pub(super) fn features(&self) -> u64 {
        self.features
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    /// The socket to it.
    pub(super) fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Gives it the guest's memory and the queues, and starts them. It raises the device's interrupt itself.
    ///
    /// # Errors
    ///
    /// [`VhostUserError`]; then it can't be used any more.
    pub(super) fn start(&mut self, activation: &Activation) -> Result<(), VhostUserError> {
        self.exchange("start its queues", Command::Start(Rings::new(activation)?)).map(drop)
    }

    /// Stops its queues: when it has answered, it touches the guest's memory no more.
    ///
    /// # Errors
    ///
    /// [`VhostUserError`]; then it can't be used any more.
    pub(super) fn stop(&mut self) -> Result<(), VhostUserError> {
        self.exchange("stop its queues", Command::Stop).map(drop)
    }

    /// Stops its queues as [`stop`](Self::stop) does, and returns each with the index of its next chain.
    ///
    /// # Errors
    ///
    /// [`SuspendFailure::Late`] if it did not answer in time: it goes on with its queues when it does.
    pub(super) fn suspend(&mut self) -> Result<Vec<(usize, u16)>, SuspendFailure> {
        match self.call(Command::Suspend) {
            Ok(Reply::Stopped(queues)) => Ok(queues),
            Ok(Reply::Failed(error)) => Err(SuspendFailure::Lost(error)),
            Ok(Reply::Features(_) | Reply::Started) => Ok(Vec::new()),
            Err(error) => Err(SuspendFailure::Late(error)),
        }
    }

    fn call(&self, command: Command) -> Result<Reply, CallError> {
        self.thread.send(command)?.wait_until(Instant::now() + self.deadline)
    }

    fn exchange(&self, doing: &'static str, command: Command) -> Result<Reply, VhostUserError> {
        match self.call(command) {
            Ok(Reply::Failed(error)) => Err(error),
            Ok(reply) => Ok(reply),
            Err(_) => {
                self.hang_up();
                Err(VhostUserError::TimedOut { doing, seconds: self.deadline.as_secs() })
            }
        }
    }

    /// Ends any wait for an answer. The back end can't be used any more.
    fn hang_up(&self) {
        // It fails only if the other end has gone, which ends the wait as well.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

impl Drop for BackEnd {
    fn drop(&mut self) {
        self.hang_up();
    }
}

/// Why a back end did not suspend its queues.
pub(super) enum SuspendFailure {
    /// It did not answer in time, and serves the device on.
    Late(CallError),
    /// It can't be used any more.
    Lost(VhostUserError),
}

/// The thread's side.
struct Exchange {
    front_end: Frontend,
    /// How many queues the device has.
    queues: usize,
    /// The queues that the back end serves.
    rings: Option<Rings>,
}

impl Exchange {
    fn run(mut self, mailbox: &Mailbox<Command, Reply>) {
        // SAFETY: the mailbox, which has the descriptor, outlives the loop.
        let wake = unsafe { std::os::fd::BorrowedFd::borrow_raw(mailbox.wake_fd()) };
        while !mailbox.is_closed() {
            if let Err(error) = poll(&mut [PollFd::new(&wake, PollFlags::IN)], None)
                && error != rustix::io::Errno::INTR
            {
                tracing::error!(%error, "a vhost-user device's thread cannot wait");
                return;
            }
            while let Some(letter) = mailbox.take() {
                self.answer(letter);
            }
        }
    }

    fn answer(&mut self, mut letter: Letter<Command, Reply>) {
        let Some(command) = letter.command() else { return };
        let rings = self.rings.take();
        let is_suspend = matches!(command, Command::Suspend);
        let reply = match command {
            Command::Negotiate => self.negotiate().map(Reply::Features),
            Command::Start(new) => self.start(new).map(|()| Reply::Started),
            Command::Stop | Command::Suspend => self.stop(rings.as_ref()).map(Reply::Stopped),
        };
        let reply = reply.unwrap_or_else(|failure| Reply::Failed(failure.into()));
        let is_late = letter.answer(reply);
        if let (true, Err(Reply::Stopped(positions)), Some(mut rings)) = (is_suspend, is_late, rings) {
            rings.seek(&positions);
            if let Err(failure) = self.start(rings) {
                let error: VhostUserError = failure.into();
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "a vhost-user back end does not go on after it was late to stop"
                );
            }
        }
    }

    /// Settles the protocol's features, and returns the features that the back end offers to the driver.
    fn negotiate(&mut self) -> Result<u64, Failure> {
        let Self { front_end, queues, .. } = self;
        front_end.set_owner().map_err(failed("take an owner"))?;
        let features = front_end.get_features().map_err(failed("name its features"))?;
        // `vhost` refuses it if the back end has no such features: enabling a queue is one of them.
        let protocol = front_end.get_protocol_features().map_err(failed("name its protocol features"))?;
        let wanted = VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK;
        front_end.set_protocol_features(protocol & wanted).map_err(failed("take the protocol features"))?;
        if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            // From here on each request is answered, so that a refusal is seen.
            front_end.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        if protocol.contains(VhostUserProtocolFeatures::MQ) {
            let most = front_end.get_queue_num().map_err(failed("count its queues"))?;
            if most < *queues as u64 {
                return Err(("have as many queues as the device", vhost::Error::InvalidQueue));
            }
        }
        Ok(features)
    }

    fn start(&mut self, rings: Rings) -> Result<(), Failure> {
        let front_end = &mut self.front_end;
        let features = rings.features | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        front_end.set_features(features).map_err(failed("take the features"))?;
        front_end.set_mem_table(&rings.regions).map_err(failed("take the guest's memory"))?;
        for ring in &rings.rings {
            ring.start(front_end, &rings)?;
        }
        self.rings = Some(rings);
        Ok(())
    }

    fn stop(&mut self, rings: Option<&Rings>) -> Result<Vec<(usize, u16)>, Failure> {
        let started = rings.map(|rings| rings.rings.as_slice()).unwrap_or_default();
        let mut positions = Vec::new();
        for Ring { index, .. } in started {
            self.front_end.set_vring_enable(*index, false).map_err(failed("disable a queue"))?;
            let base = self.front_end.get_vring_base(*index).map_err(failed("stop a queue"))?;
            // A split queue's position has 16 bits.
            positions.push((*index, u16::try_from(base & 0xffff).unwrap_or(0)));
        }
        Ok(positions)
    }
}

/// The queues of a driver as a back end gets them.
struct Rings {
    features: u64,
    regions: Vec<VhostUserMemoryRegionInfo>,
    rings: Vec<Ring>,
    /// The queues' notifiers (kicks), by their index.
    notifiers: Arc<[EventFd]>,
    /// It has the queues' interrupts (calls).
    interrupt: Arc<dyn VirtioInterrupt>,
    /// The memory lives as long as the back end may use it.
    _memory: Arc<GuestMemoryMmap>,
}

/// A queue that the driver enabled.
struct Ring {
    index: usize,
    size: u16,
    base: u16,
    addresses: VringConfigData,
}

impl Rings {
    fn new(activation: &Activation) -> Result<Self, VhostUserError> {
        let memory = &activation.memory;
        let regions: Result<Vec<_>, _> =
            memory.iter().map(VhostUserMemoryRegionInfo::from_guest_region).collect();
        let queues = activation.queues.iter().enumerate();
        let enabled = queues.filter_map(|(index, queue)| Some((index, queue.as_ref()?)));
        let rings: Result<Vec<_>, VhostUserError> = enabled
            .map(|(index, queue)| {
                let addresses = addresses(queue, memory)?;
                let call =
                    u16::try_from(index).ok().and_then(|index| activation.interrupt.queue_eventfd(index));
                call.ok_or(VhostUserError::PrivateInterrupt)?;
                Ok(Ring { index, size: queue.size(), base: queue.next_avail(), addresses })
            })
            .collect();
        Ok(Self {
            features: activation.features,
            regions: regions.map_err(|_| VhostUserError::PrivateMemory)?,
            rings: rings?,
            notifiers: Arc::clone(&activation.notifiers),
            interrupt: Arc::clone(&activation.interrupt),
            _memory: Arc::clone(memory),
        })
    }

    /// Puts each queue at the position that the back end left it at.
    fn seek(&mut self, positions: &[(usize, u16)]) {
        for ring in &mut self.rings {
            if let Some((_, base)) = positions.iter().find(|(index, _)| *index == ring.index) {
                ring.base = *base;
            }
        }
    }
}

/// The addresses of a queue's parts in this process, which a back end translates by the memory regions.
fn addresses(queue: &Queue, memory: &GuestMemoryMmap) -> Result<VringConfigData, VhostUserError> {
    let host = |address: u64| {
        // The transport has checked that the rings lie in memory.
        let pointer = memory.get_host_address(GuestAddress(address));
        pointer.map(|pointer| pointer as u64).map_err(|_| VhostUserError::PrivateMemory)
    };
    Ok(VringConfigData {
        queue_max_size: queue.max_size(),
        queue_size: queue.size(),
        flags: 0,
        desc_table_addr: host(queue.desc_table())?,
        used_ring_addr: host(queue.used_ring())?,
        avail_ring_addr: host(queue.avail_ring())?,
        log_addr: None,
    })
}

impl Ring {
    fn start(&self, front_end: &mut Frontend, rings: &Rings) -> Result<(), Failure> {
        let Self { index, size, base, addresses } = self;
        let missing = || ("take a queue's interrupt", vhost::Error::InvalidQueue);
        let kick = rings.notifiers.get(*index).ok_or_else(missing)?;
        let call = u16::try_from(*index).ok().and_then(|index| rings.interrupt.queue_eventfd(index));
        let call = call.ok_or_else(missing)?;
        front_end.set_vring_num(*index, *size).map_err(failed("take a queue's size"))?;
        front_end.set_vring_addr(*index, addresses).map_err(failed("take a queue's addresses"))?;
        front_end.set_vring_base(*index, *base).map_err(failed("take a queue's position"))?;
        front_end.set_vring_call(*index, call).map_err(failed("take a queue's interrupt"))?;
        front_end.set_vring_kick(*index, kick).map_err(failed("take a queue's notifier"))?;
        front_end.set_vring_enable(*index, true).map_err(failed("enable a queue"))
    }
}
