//! The keeper's side.

use std::io::{self, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use agent_protocol::{Decoder, Size, Stream, encode};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown, send, shutdown};
use rustix::process::{Signal, getpid, kill_process};

use super::{CHUNK, FromKeeper, LAST_WORDS, MAX_CLIENTS, MAX_REMAINDERS, SOCKET, ToKeeper, VERSION};

/// How long no connection is taken after one that could not be.
const PAUSE: Duration = Duration::from_millis(200);
/// How often one who waits for a reader looks whether the container has ended.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// What those who are attached have of a container.
#[derive(Clone, Copy, Debug)]
pub struct Console {
    /// It has a terminal.
    pub has_terminal: bool,
    /// It gets input from those who are attached.
    pub has_input: bool,
    /// Its input ends with that of the first one whose input ends.
    pub input_once: bool,
}

/// Where the container's input comes from.
pub enum Input {
    /// This process's standard input.
    Standard,
    /// Those who are attached.
    Attached(UnixStream),
}

/// Those who are attached to a container.
pub struct Attachments {
    clients: Mutex<Vec<Arc<Client>>>,
    /// How many threads pass on what clients have left behind.
    remainders: AtomicUsize,
    console: Console,
    /// Where input goes.
    input: Mutex<Option<Arc<UnixStream>>>,
    /// Passes the size of a terminal on.
    resize: Box<dyn Fn(Size) + Send + Sync>,
    has_started: AtomicBool,
    is_for_good: AtomicBool,
    /// Until when those who do not read are waited for, once the container has ended.
    deadline: Mutex<Option<Instant>>,
}

struct Client {
    socket: UnixStream,
    /// Held while a message is written.
    writing: Mutex<()>,
    /// It is the user's command that has started the container.
    is_front: bool,
    /// Nothing is sent to it any more.
    has_gone: AtomicBool,
    /// Its place was given back.
    has_left: AtomicBool,
}

/// One of the threads that pass on what a client has left behind.
struct Remainder(Arc<Attachments>);

impl Remainder {
    /// None where there are as many as may be.
    fn new(attachments: &Arc<Attachments>) -> Option<Self> {
        let others = attachments.remainders.fetch_add(1, Ordering::SeqCst);
        let this = Self(attachments.clone());
        (others < MAX_REMAINDERS).then_some(this)
    }
}

impl Drop for Remainder {
    fn drop(&mut self) {
        self.0.remainders.fetch_sub(1, Ordering::SeqCst);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Attachments {
    /// Listens in the VM's `directory`; `front` is attached already. Returns where the container's input comes from, if
    /// it is from those who are attached.
    pub fn open(
        directory: &Path,
        console: Console,
        front: Option<UnixStream>,
        resize: Box<dyn Fn(Size) + Send + Sync>,
    ) -> io::Result<(Arc<Self>, Option<UnixStream>)> {
        let (input, source) = UnixStream::pair()?;
        let this = Arc::new(Self {
            clients: Mutex::default(),
            remainders: AtomicUsize::new(0),
            console,
            input: Mutex::new(console.has_input.then(|| Arc::new(input))),
            resize,
            has_started: AtomicBool::new(false),
            is_for_good: AtomicBool::new(false),
            deadline: Mutex::new(None),
        });
        if let Some(front) = front {
            this.add(front, true)?;
        }
        let listener = UnixListener::bind(socket(directory))?;
        let accepting = this.clone();
        Builder::new()
            .name("attach".into())
            .stack_size(64 << 10)
            .spawn(move || accepting.accept(&listener))?;
        Ok((this, console.has_input.then_some(source)))
    }

    fn accept(self: &Arc<Self>, listener: &UnixListener) {
        for socket in listener.incoming() {
            let Ok(socket) = socket else {
                // Out of descriptors or memory, which nothing tells the end of.
                std::thread::sleep(PAUSE);
                continue;
            };
            if let Err(error) = self.add(socket, false) {
                tracing::debug!(%error, "cannot let a terminal attach to the container");
            }
        }
    }

    fn add(self: &Arc<Self>, socket: UnixStream, is_front: bool) -> io::Result<()> {
        let client = Arc::new(Client {
            socket,
            writing: Mutex::default(),
            is_front,
            has_gone: AtomicBool::new(false),
            has_left: AtomicBool::new(false),
        });
        let Console { has_terminal, has_input, .. } = self.console;
        {
            let mut clients = lock(&self.clients);
            if clients.len() >= MAX_CLIENTS {
                drop(clients);
                client.send(&FromKeeper::Full { clients: MAX_CLIENTS }, &self.deadline);
                return Err(io::Error::other("too many are attached"));
            }
            clients.push(client.clone());
        }
        client.send(&FromKeeper::Hello { version: VERSION, has_terminal, has_input }, &self.deadline);
        let (this, listened) = (self.clone(), client.clone());
        let spawned = Builder::new().name("attached".into()).stack_size(128 << 10).spawn(move || {
            let has_input = this.listen(&listened);
            this.remove(&listened);
            if has_input {
                this.end_input();
            }
        });
        if spawned.is_err() {
            // Output would be waited for that it does not read, and its place never be another one's.
            lock(&self.clients).retain(|other| !Arc::ptr_eq(other, &client));
        }
        spawned.map(drop)
    }

    /// Does what a client says until it has gone; whether it has sent input. What it has left behind is passed on too.
    fn listen(self: &Arc<Self>, client: &Arc<Client>) -> bool {
        let mut has_input = false;
        let mut decoder = Decoder::default();
        let mut bytes = vec![0; CHUNK];
        let mut remainder = None;
        loop {
            match (&client.socket).read(&mut bytes) {
                Ok(count @ 1..) => decoder.push(bytes.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => return has_input,
            }
            loop {
                match decoder.take() {
                    Ok(Some(ToKeeper::Input(bytes))) => {
                        has_input = true;
                        if !self.pass_input(&bytes, client, &mut remainder) {
                            return has_input;
                        }
                    }
                    Ok(Some(ToKeeper::InputEnd)) => self.end_input(),
                    Ok(Some(ToKeeper::Resize(size))) => (self.resize)(size),
                    Ok(None) => break,
                    // It is not one of ours.
                    Err(_) => return has_input,
                }
            }
        }
    }

    /// Waits until the container has room for it, as at a pipe. A client that goes meanwhile gives its place back at
    /// once; what it has sent waits on, as what was written to a pipe does, unless others have left as much: false
    /// then.
    fn pass_input(
        self: &Arc<Self>,
        mut bytes: &[u8],
        client: &Arc<Client>,
        remainder: &mut Option<Remainder>,
    ) -> bool {
        while !bytes.is_empty() {
            // Without the lock while it waits: another client's wait would not see that this one goes.
            let Some(input) = lock(&self.input).clone() else { return true };
            match send(&*input, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let mut fds = vec![PollFd::new(&*input, PollFlags::OUT)];
                    if remainder.is_none() {
                        // Its hang-up alone.
                        fds.push(PollFd::new(&client.socket, PollFlags::empty()));
                    }
                    let _ = poll(&mut fds, None);
                    let has_gone = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
                    if has_gone {
                        self.remove(client);
                        *remainder = Remainder::new(self);
                        if remainder.is_none() {
                            tracing::warn!(
                                "input of a client that has gone is lost: the container does not read, and the input of \
                                 {MAX_REMAINDERS} others waits already"
                            );
                            return false;
                        }
                    }
                }
                Err(_) => return true,
            }
        }
        true
    }

    /// One has no more input. A terminal never ends.
    fn end_input(&self) {
        if self.console.input_once
            && !self.console.has_terminal
            && let Some(input) = lock(&self.input).take()
        {
            // Others that wait may have it still.
            let _ = shutdown(&*input, Shutdown::Write);
        }
    }

    /// Gives a client's place back.
    fn remove(&self, client: &Arc<Client>) {
        if client.has_left.swap(true, Ordering::SeqCst) {
            return;
        }
        client.has_gone.store(true, Ordering::SeqCst);
        lock(&self.clients).retain(|other| !Arc::ptr_eq(other, client));
        if client.is_front && !self.has_started.load(Ordering::SeqCst) {
            // The user has ended the command before there was a container to leave behind.
            let _ = kill_process(getpid(), Signal::TERM);
        }
    }

    /// The container's command runs.
    pub fn started(&self) {
        self.has_started.store(true, Ordering::SeqCst);
    }

    /// This process was asked to end, and so is the container with it.
    pub(crate) fn end_for_good(&self) {
        self.is_for_good.store(true, Ordering::SeqCst);
    }

    /// Whether it ends since this process was asked to: it is not started again.
    pub fn is_for_good(&self) -> bool {
        self.is_for_good.load(Ordering::SeqCst)
    }

    /// Passes output on to all who are attached, and waits until they have taken it.
    pub fn pass_output(&self, stream: Stream, bytes: &[u8]) {
        let clients = lock(&self.clients).clone();
        if clients.is_empty() {
            return;
        }
        for chunk in bytes.chunks(CHUNK) {
            let message = match stream {
                Stream::Stderr => FromKeeper::Errors(chunk.to_vec()),
                Stream::Stdin | Stream::Stdout => FromKeeper::Output(chunk.to_vec()),
            };
            for client in &clients {
                client.send(&message, &self.deadline);
            }
        }
    }

    /// The container has ended: from now on, those who do not read are waited for 5 s at most.
    pub fn ending(&self) {
        lock(&self.deadline).get_or_insert_with(|| Instant::now() + LAST_WORDS);
    }

    /// Tells all who are attached how the container ended.
    pub fn finish(&self, code: u8, text: &str) {
        self.ending();
        let clients = lock(&self.clients).clone();
        for client in clients {
            client.send(&FromKeeper::Ended { code, text: text.to_owned() }, &self.deadline);
        }
    }
}

impl Client {
    /// Sends a message, and waits until it is taken. One that has gone is passed over.
    fn send(&self, message: &FromKeeper, deadline: &Mutex<Option<Instant>>) {
        if self.has_gone.load(Ordering::SeqCst) {
            return;
        }
        let Ok(bytes) = encode(message) else { return };
        let _writing = lock(&self.writing);
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            match send(&self.socket, rest, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let _ = poll(&mut [PollFd::new(&self.socket, PollFlags::OUT)], Some(&LOOK));
                    let is_over = lock(deadline).is_some_and(|deadline| Instant::now() > deadline);
                    if is_over {
                        break;
                    }
                }
                Err(_) => break,
            }
        }
        if !rest.is_empty() {
            // What it would read next is not the beginning of a message.
            self.has_gone.store(true, Ordering::SeqCst);
            let _ = shutdown(&self.socket, Shutdown::Both);
        }
    }
}

/// The path of the socket.
pub fn socket(directory: &Path) -> PathBuf {
    directory.join(SOCKET)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
