//! The host's end of the consoles.
//!
//! Devices write to a hub, from which standard output or a file ([`Sink`]), the log and all who are attached
//! ([`instance::console::attach`]) read, each at its own pace. What any of them types goes to one device.

mod awaited;
mod client;
mod events;
mod file;
mod hub;
mod input;
mod keyboard;
mod log;
mod reader_credit;
mod ring;
mod server;
mod sink;
mod watch;
mod window;
mod writer;

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use devices::metrics::Metrics;
use devices::socket::{ListeningSocket, SocketError};
use devices::virtio::console::{Console as VirtioConsole, ConsoleSink};
use event_manager::MutEventSubscriber;
use instance::CONSOLE_SOCKET;
use thiserror::Error;

pub use awaited::{AwaitedText, OnText};
pub use events::ConsoleEvents;
pub use file::{ConsoleKeeper, FileIdentity, begin_anew, mode_of};
pub use input::InputPort;
pub use log::{LogFile, LogKeeper};
pub use sink::Sink;

use self::hub::{Hub, Output};
use self::server::Server;
use self::window::WindowWatcher;
use self::writer::Writer;
use crate::exit::ExitSlot;
use crate::frontend::Frontend;

/// Why the console could not be set up.
#[derive(Debug, Error)]
pub enum ConsoleError {
    /// The file could not be opened.
    #[error("cannot open the console's file {}", path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The socket could not be made.
    #[error("cannot make the console's socket {}", path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: SocketError,
    },
    /// Standard input could not be set up.
    #[error("cannot set up the terminal")]
    Terminal(#[source] io::Error),
    /// A system call failed.
    #[error("cannot set up the console")]
    Host(#[source] io::Error),
}

/// What the console has of the file system, open.
#[derive(Default)]
pub struct ConsoleFiles {
    log: Option<LogFile>,
    server: Option<ListeningSocket>,
}

impl ConsoleFiles {
    /// Makes a file for the latest output at `log`, and a socket in `directory`, the VM's own.
    ///
    /// # Errors
    ///
    /// [`ConsoleError`].
    pub fn open(log: Option<PathBuf>, directory: Option<&Path>) -> Result<Self, ConsoleError> {
        let log = log.map(LogFile::create).transpose()?;
        let listen = |directory: &Path| Server::listen(directory.join(CONSOLE_SOCKET));
        Ok(Self { log, server: directory.map(listen).transpose()? })
    }
}

/// The consoles of a VM, from their making to the VM's end.
pub struct Console {
    hub: Arc<Hub>,
    writer: Option<Writer>,
    virtio: Option<Arc<Mutex<VirtioConsole>>>,
}

impl Console {
    /// A console without devices, which writes to `sink`. Where that is standard output and its reader goes away, the
    /// VM ends through `exit`.
    ///
    /// # Errors
    ///
    /// [`ConsoleError::Host`].
    pub fn new(sink: Option<Sink>, exit: &Arc<ExitSlot>) -> Result<Self, ConsoleError> {
        let hub = Hub::new().map_err(ConsoleError::Host)?;
        let start = |sink| Writer::start(hub.awaited_reader(), sink, exit);
        let writer = sink.map(start).transpose().map_err(ConsoleError::Host)?;
        Ok(Self { hub, writer, virtio: None })
    }

    /// Where a device without flow control writes. Its writer never waits.
    pub fn output(&self) -> Box<dyn io::Write + Send> {
        Box::new(Output::new(&self.hub))
    }

    /// Makes a virtio console, which has to be added to the VM.
    ///
    /// # Errors
    ///
    /// [`ConsoleError::Host`].
    pub fn virtio(&self) -> Result<VirtioConsole, ConsoleError> {
        self.hub.add_flow_control().map_err(ConsoleError::Host)?;
        let sink: Box<dyn ConsoleSink> = Box::new(Output::new(&self.hub));
        VirtioConsole::new(sink, window::size()).map_err(ConsoleError::Host)
    }

    /// Takes note of `console`, now that it is a device of the VM: it gets the window's size from the subscriber
    /// that is returned, and what is typed goes to the port.
    ///
    /// # Errors
    ///
    /// [`ConsoleError::Host`].
    pub fn connect(
        &mut self,
        console: Arc<Mutex<VirtioConsole>>,
    ) -> Result<(InputPort, Box<dyn MutEventSubscriber>), ConsoleError> {
        let drained = console.lock().unwrap_or_else(PoisonError::into_inner).drained();
        let port = InputPort::Virtio(console.clone(), drained.map_err(ConsoleError::Host)?);
        let watcher = WindowWatcher::new(console.clone()).map_err(ConsoleError::Host)?;
        self.virtio = Some(console);
        Ok((port, Box::new(watcher)))
    }

    /// Begins to take input for `port`: from `frontend`, who has the terminal in raw mode, and from who attaches by the
    /// socket of `files`.
    ///
    /// # Errors
    ///
    /// [`ConsoleError`].
    pub fn events(
        &mut self,
        frontend: &mut Frontend,
        files: ConsoleFiles,
        port: InputPort,
        exit: &Arc<ExitSlot>,
    ) -> Result<ConsoleEvents, ConsoleError> {
        let mut events = ConsoleEvents::new(&self.hub, port);
        if let Some(log) = files.log {
            events.add_log(log.kept_by(frontend.log_keeper.take()));
        }
        if let Some(text) = &frontend.awaited {
            events.add_awaited(text.clone());
        }
        if let Some(server) = files.server {
            events.add_server(server);
        }
        if frontend.reads_stdin {
            let stdin = io::stdin();
            let is_terminal = stdin.is_terminal();
            events.add_keyboard(Box::new(stdin), is_terminal, exit.clone())?;
        }
        Ok(events)
    }

    /// What the VM's consoles count together; each device has counters of its own.
    pub fn metrics(&self) -> Arc<dyn Metrics> {
        self.hub.metrics()
    }

    /// Gives readers what the guest wrote before its end. The vCPUs have ended, the event loop has not.
    pub fn flush(&self) {
        if let Some(console) = &self.virtio {
            console.lock().unwrap_or_else(PoisonError::into_inner).flush();
        }
        self.hub.close();
    }

    /// What the guest has output last, some KiB of it.
    pub(crate) fn latest(&self) -> String {
        String::from_utf8_lossy(&self.hub.latest()).into_owned()
    }

    /// Waits for a reader of standard output or of the file who is merely slow. The event loop has ended.
    pub fn finish(mut self) {
        if self.writer.take().is_some_and(|writer| !writer.finish()) {
            tracing::warn!("the end of the console's output was not read");
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // Where the VM was not even built, the writer has nothing to wait for.
        self.hub.close();
    }
}
