//! The thread that serves the device. It is made with the device, and the device's methods are messages to it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::muxer::{EVENT, Muxer, Parked, RX, Setup, TX};
use super::table::Id;
use crate::virtio::mailbox::{DeviceThread, Letter, Mailbox};
use crate::virtio::{ActivateError, Activation, Queue};

/// What is watched beside connections: no [`Id`] is as large.
const MAILBOX: u64 = u64::MAX;
const LISTENER: u64 = u64::MAX - 1;
const RECEIVE_QUEUE: u64 = u64::MAX - 2;
const TRANSMIT_QUEUE: u64 = u64::MAX - 3;
const EVENT_QUEUE: u64 = u64::MAX - 4;
const DIALER: u64 = u64::MAX - 5;
const QUEUES: [(u16, u64); 3] = [(RX, RECEIVE_QUEUE), (TX, TRANSMIT_QUEUE), (EVENT, EVENT_QUEUE)];

/// How many events are taken at once.
const MAX_EVENTS: usize = 64;

/// What the device asks of its thread.
pub(super) enum Command {
    /// Serve these queues.
    Activate(Activation),
    /// Close all connections and give the queues up.
    Reset,
    /// Give the queues back and leave everything else as it is.
    Suspend,
    /// Serve these queues with the connections from before, or as those of a guest that had connections elsewhere.
    Resume(Option<Activation>),
}

/// What the thread answers.
pub(super) enum Reply {
    /// It is done.
    Done,
    /// The device can't work so.
    Refused(ActivateError),
    /// The queues, as [`VirtioDevice::suspend`](crate::virtio::VirtioDevice::suspend) gives them back.
    Queues(Vec<Option<Queue>>),
}

/// The thread, as the device has it.
pub(super) type Thread = DeviceThread<Command, Reply>;

/// Starts the thread.
///
/// # Errors
///
/// The host has no descriptor or no thread left.
pub(super) fn start(setup: Setup) -> io::Result<Thread> {
    DeviceThread::spawn("vsock", move |mailbox| {
        let mut server = Server { setup, mailbox, phase: Phase::Idle };
        if let Err(error) = server.run() {
            tracing::error!(%error, "the vsock thread cannot wait for messages");
        }
    })
}

/// What the thread has to do.
enum Phase {
    /// No driver works with the device.
    Idle,
    /// There are queues and connections.
    Working(Box<Muxer>),
    /// The device is suspended, with connections where a driver worked with it.
    Suspended(Option<Box<Parked>>),
}

struct Server {
    setup: Setup,
    mailbox: Mailbox<Command, Reply>,
    phase: Phase,
}

impl Server {
    fn run(&mut self) -> io::Result<()> {
        watch(&self.setup, self.mailbox.wake_fd(), MAILBOX, EventFlags::IN)?;
        let mut events = Vec::with_capacity(MAX_EVENTS);
        // To look for messages when there are none costs a system call.
        let mut has_mail = true;
        while !self.mailbox.is_closed() {
            while has_mail {
                match self.mailbox.take() {
                    Some(letter) => self.serve(letter),
                    None => has_mail = false,
                }
            }
            match &mut self.phase {
                Phase::Working(muxer) => match work(muxer, &self.setup, &mut events) {
                    Ok(found) => has_mail = found,
                    Err(error) => {
                        tracing::error!(%error, "the vsock thread cannot wait for its sockets");
                        muxer.interrupt().needs_reset();
                        self.reset();
                    }
                },
                Phase::Idle | Phase::Suspended(_) => {
                    wait_for(self.mailbox.wake_fd())?;
                    has_mail = true;
                }
            }
        }
        Ok(())
    }

    fn serve(&mut self, mut letter: Letter<Command, Reply>) {
        let Some(command) = letter.command() else { return };
        let starts = matches!(command, Command::Activate(_) | Command::Resume(_));
        let reply = match command {
            Command::Activate(activation) => self.work_on(activation, None),
            Command::Reset => {
                self.reset();
                Reply::Done
            }
            Command::Suspend => self.suspend(),
            Command::Resume(activation) => self.resume(activation),
        };
        // The caller may have given up waiting: then it has not happened.
        match letter.answer(reply) {
            Err(Reply::Queues(queues)) => self.take_back(queues),
            Err(Reply::Done | Reply::Refused(_)) if starts => self.reset(),
            _ => {}
        }
    }

    /// Serves the queues of `activation`, with connections where there are some.
    fn work_on(&mut self, activation: Activation, parked: Option<Box<Parked>>) -> Reply {
        let muxer = Muxer::new(self.setup.clone(), activation, parked)
            .and_then(|muxer| watch_all(&self.setup, &muxer).map(|()| muxer).map_err(ActivateError::Host));
        match muxer {
            Ok(mut muxer) => {
                muxer.send_reset_event();
                self.phase = Phase::Working(Box::new(muxer));
                Reply::Done
            }
            Err(error) => {
                self.phase = Phase::Idle;
                Reply::Refused(error)
            }
        }
    }

    fn reset(&mut self) {
        match &mut self.phase {
            Phase::Working(muxer) => {
                unwatch_all(&self.setup, muxer);
                self.phase = Phase::Idle;
            }
            Phase::Suspended(parked) => *parked = None,
            Phase::Idle => {}
        }
        self.setup.reset_event.set(false);
    }

    fn suspend(&mut self) -> Reply {
        let (queues, parked) = match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Working(muxer) => {
                unwatch_all(&self.setup, &muxer);
                let (queues, parked) = muxer.suspend();
                (queues, Some(Box::new(parked)))
            }
            Phase::Suspended(parked) => (Vec::new(), parked),
            Phase::Idle => (Vec::new(), None),
        };
        self.phase = Phase::Suspended(parked);
        Reply::Queues(queues)
    }

    fn resume(&mut self, activation: Option<Activation>) -> Reply {
        let parked = match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Suspended(parked) => parked,
            // The state is of another device, whose connections do not exist here: the driver gets TRANSPORT_RESET.
            Phase::Idle if activation.is_some() => {
                self.setup.reset_event.set(true);
                None
            }
            Phase::Idle => None,
            Phase::Working(muxer) => {
                self.phase = Phase::Working(muxer);
                return Reply::Refused(ActivateError::State("the device works already".to_owned()));
            }
        };
        activation.map_or(Reply::Done, |activation| self.work_on(activation, parked))
    }

    /// Continues with `queues`, as the caller did not wait for them.
    fn take_back(&mut self, queues: Vec<Option<Queue>>) {
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Suspended(Some(parked)) => {
                let activation = parked.activation_with(queues);
                if let Reply::Refused(error) = self.work_on(activation, Some(parked)) {
                    tracing::error!(error = &error as &dyn std::error::Error, "vsock cannot go on");
                }
            }
            Phase::Suspended(None) => {}
            other => self.phase = other,
        }
    }
}

/// Works once and waits for what comes next; whether there are messages.
fn work(muxer: &mut Muxer, setup: &Setup, events: &mut Vec<Event>) -> io::Result<bool> {
    let timeout = if muxer.turn() { Some(Duration::ZERO) } else { muxer.timeout() };
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    match epoll::wait(&setup.epoll, rustix::buffer::spare_capacity(events), timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let mut has_mail = false;
    for event in events.drain(..) {
        match event.data.u64() {
            MAILBOX => has_mail = true,
            LISTENER => muxer.listener_ready(),
            RECEIVE_QUEUE => muxer.fill_receive_queue(),
            TRANSMIT_QUEUE => muxer.serve_transmit_queue(),
            EVENT_QUEUE => muxer.send_reset_event(),
            DIALER => {
                // The process that keeps the VM has gone, which ends the VM.
                if muxer.dialer_ready().is_err() {
                    unwatch_dialer(setup);
                }
            }
            id => muxer.event(Id::from_u64(id), event.flags),
        }
    }
    Ok(has_mail)
}

fn borrow<'a>(fd: RawFd) -> BorrowedFd<'a> {
    // SAFETY: the callers have what the descriptor belongs to.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

fn watch(setup: &Setup, fd: RawFd, token: u64, flags: EventFlags) -> io::Result<()> {
    Ok(epoll::add(&setup.epoll, borrow(fd), EventData::new_u64(token), flags)?)
}

/// Watches the listener and the queues of `muxer`.
fn watch_all(setup: &Setup, muxer: &Muxer) -> io::Result<()> {
    // Where there are no descriptors left, the listener stays ready for as long as that lasts: hence on edges. A
    // notifier that is watched on edges needs not be read.
    let edge = EventFlags::IN | EventFlags::ET;
    let mut result = watch(setup, setup.listener.as_fd().as_raw_fd(), LISTENER, edge);
    for (index, token) in QUEUES {
        if let Some(notifier) = muxer.notifiers().get(usize::from(index)) {
            result = result.and_then(|()| watch(setup, notifier.as_raw_fd(), token, edge));
        }
    }
    if let Some(dialer) = &setup.dialer {
        result = result.and_then(|()| watch(setup, dialer.as_fd().as_raw_fd(), DIALER, EventFlags::IN));
    }
    if result.is_err() {
        unwatch_all(setup, muxer);
    }
    result
}

/// Ends that. What is not watched need not be ended.
fn unwatch_all(setup: &Setup, muxer: &Muxer) {
    let _ = epoll::delete(&setup.epoll, setup.listener.as_fd());
    unwatch_dialer(setup);
    for notifier in muxer.notifiers() {
        let _ = epoll::delete(&setup.epoll, borrow(notifier.as_raw_fd()));
    }
}

fn unwatch_dialer(setup: &Setup) {
    if let Some(dialer) = &setup.dialer {
        let _ = epoll::delete(&setup.epoll, dialer.as_fd());
    }
}

/// Waits for a message. What happens at sockets meanwhile is found by the epoll later.
fn wait_for(mailbox: RawFd) -> io::Result<()> {
    match poll(&mut [PollFd::from_borrowed_fd(borrow(mailbox), PollFlags::IN)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
