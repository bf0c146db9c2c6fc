//! Files of a container that does not run: a VM has its root for as long as they are needed, and nothing of it runs.

use std::io::{self, PipeReader};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use agent_protocol::{Reply, Request};
use instance::{Instance, Keep};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::assets::Assets;
use crate::changes;
use crate::connection::{Connection, ConnectionError};
use crate::files::{Files, FilesError};
use crate::image::Image;
use crate::machine::machine;
use crate::mounts::Prepared;
use crate::network::NetworkOption;
use crate::options::{RunOptions, Storage};
use crate::run::{LAST_WORDS, RunError};
use crate::session::{FILL, Listener, POWER_OFF, START};
use crate::spec::{container, storage};
use vmm::{FromVm, Split, VmProcess};

/// The memory of the VM, in bytes: what is copied passes through.
const MEMORY: u64 = 192 << 20;

/// A VM with the root of a container that does not run.
pub struct Visit {
    vm: Arc<VmProcess>,
    instance: Instance,
    /// The container is not started meanwhile.
    keep: Keep,
    /// Nor are its volumes used.
    _mounts: Prepared,
    control: Connection,
}

impl Visit {
    /// Starts the VM for the container of `image` and `options` that `keep` is of, with `mounts` in its root.
    /// `instance` is its directory, and this process has one thread yet.
    ///
    /// # Errors
    ///
    /// [`RunError`]; of the VM nothing is left behind.
    pub fn start(
        (assets, image, options): (&Assets, &Image, &RunOptions),
        mounts: Prepared,
        instance: Instance,
        keep: Keep,
        split: Split<'_>,
    ) -> Result<Self, RunError> {
        let host = |doing| move |source| RunError::Host { doing, source };
        keep.set_visited(true).map_err(host("note that the container's files are used"))?;
        let mut container = container(instance.id().as_str(), &image.config, options, &mounts)?;
        container.resources = Default::default();
        container.network = None;
        let changes = match storage(options) {
            Storage::Memory => None,
            Storage::Disk(size) => Some(
                changes::open_or_create(&assets.changes, keep.directory(), size)
                    .map_err(host("make the disk for the container's changes"))?,
            ),
        };
        let has_mounts = !mounts.mounts.is_empty();
        let machine_options = RunOptions {
            memory: Some(MEMORY),
            milli_cpus: Some(1000),
            storage: options.storage,
            network: NetworkOption::None,
            ..RunOptions::default()
        };
        let config = machine(
            assets,
            image,
            &machine_options,
            instance.path(),
            changes.as_deref(),
            &mounts,
            Vec::new(),
        );
        let listener = Listener::open(instance.path()).map_err(host("make a socket for the agent"))?;
        let (vm, instance, (keep, listener)) =
            VmProcess::start(&config, instance, (keep, listener), split, Instant::now())
                .map_err(host("make a process for the VM"))?;
        let vm = Arc::new(vm);
        let connected =
            listen(&vm).map_err(host("start a thread")).and_then(|ended| connect(&listener, &ended));
        let held = connected.and_then(|mut control| {
            control.send(&Request::Hold(Box::new(container))).map_err(session)?;
            // A new volume gets what the image has at its place.
            match control.receive_within(if has_mounts { FILL } else { START }).map_err(session)? {
                Reply::Started => Ok(control),
                Reply::Failed(failure) => Err(RunError::Failed(failure.message)),
                other => Err(session(ConnectionError::Unexpected(format!("{other:?}")))),
            }
        });
        match held {
            Ok(control) => Ok(Self { vm, instance, keep, _mounts: mounts, control }),
            Err(error) => {
                vm.kill();
                vm.wait(LAST_WORDS);
                Err(error)
            }
        }
    }

    /// The container's files.
    ///
    /// # Errors
    ///
    /// [`FilesError`].
    pub fn files(&self) -> Result<Files, FilesError> {
        Files::of(self.instance.path(), self.instance.id().as_str())
    }

    /// Has everything written to the container's disk, and ends the VM.
    pub fn finish(mut self) {
        if self.control.send(&Request::PowerOff).is_err() {
            self.vm.kill();
        }
        self.vm.wait(POWER_OFF);
        let _ = self.keep.set_visited(false);
    }
}

fn session(error: ConnectionError) -> RunError {
    RunError::Session(Box::new(error))
}

/// What says that the VM has ended, and why.
pub struct Ended {
    end: PipeReader,
    why: Receiver<String>,
    thread: JoinHandle<()>,
}

impl Ended {
    /// Waits until the VM has ended, and with it the thread.
    pub fn wait(self) {
        let _ = self.thread.join();
    }
}

/// Takes what the VM says, on a thread of its own, until it ends.
pub fn listen(vm: &Arc<VmProcess>) -> io::Result<Ended> {
    let ((end, alive), (says, why)) = (io::pipe()?, channel());
    let vm = vm.clone();
    let thread = Builder::new().name("vm".into()).stack_size(64 << 10).spawn(move || {
        while let Some(said) = vm.receive() {
            match said {
                FromVm::Ended(end) => drop(says.send(end.text)),
                FromVm::Failed(failure) => drop(says.send(failure.text)),
                FromVm::Pressed | FromVm::Built | FromVm::Printed | FromVm::Slot { .. } => {}
            }
        }
        drop((says, alive));
    })?;
    Ok(Ended { end, why, thread })
}

/// Waits until the agent connects, or the VM has ended.
pub fn connect(listener: &Listener, ended: &Ended) -> Result<Connection, RunError> {
    let host = |source: io::Error| RunError::Host { doing: "wait for the container's VM", source };
    let deadline = Instant::now() + START;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 0, tv_nsec: 0 });
        let mut fds = [PollFd::new(&listener.0, PollFlags::IN), PollFd::new(&ended.end, PollFlags::IN)];
        match poll(&mut fds, Some(&left)) {
            Ok(0) => return Err(session(ConnectionError::Silent(START))),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(host(error.into())),
        }
        let [agent, end] = fds.map(|fd| !fd.revents().is_empty());
        if agent {
            let (socket, _) = listener.0.accept().map_err(host)?;
            return Connection::greet(socket).map_err(session);
        }
        if end {
            let why = ended.why.recv_timeout(Duration::ZERO);
            return Err(RunError::Vm(why.unwrap_or_else(|_| "the container's VM has ended".into())));
        }
    }
}
