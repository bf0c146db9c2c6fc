//! The server's end of the control socket, on the event loop.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use devices::Timer;
use devices::socket::ListeningSocket;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use vmm_sys_util::eventfd::EventFd;

use super::ControlError;
use super::connection::{Answer, Connection, Next, Serve};
use super::response::Response;
use super::router::{Outcome, Task, route};
use crate::background::Background;
use crate::handle::VmHandle;

/// The most connections; one more takes the place of another.
const MAX_CONNECTIONS: usize = 16;
/// How many clients may wait to be accepted.
const BACKLOG: i32 = 128;
/// How often connections are looked at for what takes too long.
const TICK: Duration = Duration::from_secs(1);
const NEVER: Duration = Duration::ZERO;
/// How long the end of the VM waits for answers that are on their way: a request such as the power button's may well be
/// what ended it.
const LAST_ANSWERS: Duration = Duration::from_millis(200);

/// Numbers connections, each but once, so that an answer that comes late finds its own or none.
type Serial = u64;

/// Serves the control socket of a VM.
pub struct ControlServer {
    listener: ListeningSocket,
    vm: Arc<VmHandle>,
    connections: BTreeMap<Serial, Connection>,
    next_serial: Serial,
    /// Runs while there are connections.
    timer: Timer,
    late: LateAnswers,
    /// The host has no descriptor for another client; the timer looks again.
    listener_paused: bool,
}

/// Requests that may take their time, which the background thread answers one after the other.
struct LateAnswers {
    vm: Arc<VmHandle>,
    background: Background,
    sender: Sender<(Serial, Response)>,
    answers: Receiver<(Serial, Response)>,
    /// There is an answer.
    event: Arc<EventFd>,
    /// The connections that wait for an answer.
    waiting: BTreeMap<Serial, Arc<()>>,
}

impl ControlServer {
    /// Makes the socket at `path`, for this user alone.
    ///
    /// # Errors
    ///
    /// [`ControlError::Socket`].
    pub fn listen(path: &Path) -> Result<ListeningSocket, ControlError> {
        ListeningSocket::listen(path, BACKLOG, SocketFlags::NONBLOCK)
            .map_err(|source| ControlError::Socket { path: path.to_owned(), source })
    }

    /// Serves `vm` on `listener`, which [`listen`](Self::listen) made, with `background` for what takes its time.
    ///
    /// # Errors
    ///
    /// [`ControlError::Setup`].
    pub fn new(
        listener: ListeningSocket,
        vm: Arc<VmHandle>,
        background: Background,
    ) -> Result<Self, ControlError> {
        let timer = Timer::new().map_err(ControlError::Setup)?;
        let late = LateAnswers::new(vm.clone(), background).map_err(ControlError::Setup)?;
        Ok(Self {
            listener,
            vm,
            connections: BTreeMap::new(),
            next_serial: 0,
            timer,
            late,
            listener_paused: false,
        })
    }

    /// Takes one client; more of them wait for the next turn.
    fn accept(&mut self, ops: &mut EventOps<'_>) {
        let stream = match self.listener.accept(SocketFlags::NONBLOCK) {
            Ok(stream) => UnixStream::from(stream),
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(error) => {
                // The client waits in the socket's queue, and the event loop would come back for it forever.
                tracing::warn!(%error, "the control socket cannot accept a client; it is tried again");
                let _ = ops.remove(Events::empty(&self.listener));
                self.listener_paused = true;
                return self.set_timer(TICK);
            }
        };
        if self.connections.len() >= MAX_CONNECTIONS {
            self.drop_oldest(ops);
        }
        let Ok(connection) = Connection::new(stream, Instant::now()) else { return };
        if let Err(error) = ops.add(Events::new_raw(connection.fd(), EventSet::IN)) {
            tracing::warn!(%error, "cannot watch a client of the control socket");
            return;
        }
        if self.connections.is_empty() {
            self.set_timer(TICK);
        }
        self.connections.insert(self.next_serial, connection);
        self.next_serial += 1;
    }

    /// Makes room: of the connections on which nothing is under way the one that has been silent for longest, else
    /// the one that takes longest.
    fn drop_oldest(&mut self, ops: &mut EventOps<'_>) {
        let oldest =
            self.connections.iter().min_by_key(|(_, connection)| (!connection.is_idle(), connection.since()));
        if let Some(serial) = oldest.map(|(serial, _)| *serial) {
            self.close(serial, ops);
        }
    }

    fn close(&mut self, serial: Serial, ops: &mut EventOps<'_>) {
        self.late.waiting.remove(&serial);
        if let Some(connection) = self.connections.remove(&serial) {
            // It is not there where only the VM's answer was awaited.
            let _ = ops.remove(Events::empty_raw(connection.fd()));
        }
        if self.connections.is_empty() && !self.listener_paused {
            self.set_timer(NEVER);
        }
    }

    fn set_timer(&self, interval: Duration) {
        if let Err(error) = self.timer.set_each(interval) {
            tracing::warn!(%error, "cannot set the timer of the control socket");
        }
    }

    fn serial_of(&self, fd: RawFd) -> Option<Serial> {
        self.connections.iter().find_map(|(serial, connection)| (connection.fd() == fd).then_some(*serial))
    }

    /// Lets `step` bring a connection forward, and waits for what it needs then.
    fn advance(
        &mut self,
        serial: Serial,
        ops: &mut EventOps<'_>,
        step: impl FnOnce(&mut Connection, Serve<'_>) -> Next,
    ) {
        let Some(connection) = self.connections.get_mut(&serial) else { return };
        let (vm, late) = (&self.vm, &mut self.late);
        let next = step(connection, &mut |request, files| match route(vm, request, files) {
            Outcome::Now(response) => Answer::Ready(response),
            Outcome::Later(job) => late.ask(serial, job, true),
            Outcome::LaterIfWanted(job) => late.ask(serial, job, false),
        });
        let events = match next {
            Next::Read => EventSet::IN,
            Next::Write => EventSet::OUT,
            // Errors are reported all the same, and end it.
            Next::Answer => EventSet::empty(),
            Next::Close => return self.close(serial, ops),
        };
        if let Err(error) = ops.modify(Events::new_raw(connection.fd(), events)) {
            tracing::warn!(%error, "cannot watch a client of the control socket any more");
            self.close(serial, ops);
        }
    }

    fn on_connection(&mut self, serial: Serial, events: EventSet, ops: &mut EventOps<'_>) {
        let now = Instant::now();
        if events.contains(EventSet::IN) {
            self.advance(serial, ops, |connection, serve| connection.readable(now, serve));
        } else if events.contains(EventSet::OUT) {
            self.advance(serial, ops, |connection, serve| connection.writable(now, serve));
        } else {
            // The client is gone.
            self.close(serial, ops);
        }
    }

    fn on_late_answers(&mut self, ops: &mut EventOps<'_>) {
        // It fails only where there is nothing to read.
        let _ = self.late.event.read();
        while let Ok((serial, response)) = self.late.answers.try_recv() {
            self.late.waiting.remove(&serial);
            let now = Instant::now();
            self.advance(serial, ops, |connection, serve| connection.answer(&response, now, serve));
        }
    }

    fn on_tick(&mut self, ops: &mut EventOps<'_>) {
        self.timer.acknowledge();
        let now = Instant::now();
        let late: Vec<_> =
            self.connections.iter().filter(|(_, connection)| connection.is_late(now)).collect();
        let late: Vec<_> = late.into_iter().map(|(serial, _)| *serial).collect();
        for serial in late {
            self.close(serial, ops);
        }
        if self.listener_paused && ops.add(Events::new(&self.listener, EventSet::IN)).is_ok() {
            self.listener_paused = false;
        }
    }
}

impl Drop for ControlServer {
    /// Writes the answers that are still due, as far as clients take them at once.
    fn drop(&mut self) {
        let deadline = Instant::now() + LAST_ANSWERS;
        while !self.late.waiting.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok((serial, response)) = self.late.answers.recv_timeout(left) else { return };
            self.late.waiting.remove(&serial);
            if let Some(connection) = self.connections.get_mut(&serial) {
                let gone = || Answer::Ready(Response::fault(503, "the VM has ended"));
                connection.answer(&response, Instant::now(), &mut |_, _| gone());
            }
        }
    }
}

impl LateAnswers {
    fn new(vm: Arc<VmHandle>, background: Background) -> io::Result<Self> {
        let event = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        let (sender, answers) = mpsc::channel();
        Ok(Self { vm, background, sender, answers, event, waiting: BTreeMap::new() })
    }

    /// Has `run` done; where it `changes` something, also when the client goes before.
    fn ask(&mut self, serial: Serial, run: Task, changes: bool) -> Answer {
        let client = Arc::new(());
        let wanted = (!changes).then(|| Arc::downgrade(&client));
        let (vm, sender, wake) = (self.vm.clone(), self.sender.clone(), self.event.clone());
        let job = Box::new(move || {
            // The client has gone, and asked for nothing but the answer.
            if wanted.is_some_and(|client: Weak<()>| client.strong_count() == 0) {
                return;
            }
            // The server has ended where the answer is not taken, and the event is full only where it is being read.
            let _ = sender.send((serial, run(&vm)));
            let _ = wake.write(1);
        });
        if self.background.run(job) {
            self.waiting.insert(serial, client);
            Answer::Later
        } else {
            Answer::Ready(Response::fault(503, "too many requests are waiting: try again later"))
        }
    }
}

impl MutEventSubscriber for ControlServer {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for fd in [self.listener.as_raw_fd(), self.timer.as_raw_fd(), self.late.event.as_raw_fd()] {
            if let Err(error) = ops.add(Events::new_raw(fd, EventSet::IN)) {
                tracing::error!(%error, "cannot watch the control socket");
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let fd = events.fd();
        if fd == self.listener.as_raw_fd() {
            self.accept(ops);
        } else if fd == self.timer.as_raw_fd() {
            self.on_tick(ops);
        } else if fd == self.late.event.as_raw_fd() {
            self.on_late_answers(ops);
        } else if let Some(serial) = self.serial_of(fd) {
            self.on_connection(serial, events.event_set(), ops);
        }
    }
}
