//! The control socket against clients of every kind: the server runs on a real event loop, and they talk to it through
//! its socket.

mod balloon;
mod description;
mod drives;
mod hostile;
mod requests;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use devices::virtio::balloon::{Balloon, BalloonHandle};
use devices::virtio::block::{Block, BlockHandle, Disk, DiskId, ImageFormat};
use event_manager::{EventManager, SubscriberOps};
use instance::{Client, Identity, ProcessMeter, api};
use tempfile::TempDir;

use super::*;
use crate::background::Background;
use crate::device_manager::Subscriber;
use crate::exit::ExitSlot;
use crate::handle::VmHandle;
use crate::metrics::MetricsRegistry;
use crate::pause::Pauser;
use crate::power_button::PowerButton;
use crate::vcpu::{ExitCounters, Gate};
use crate::{ConsoleConfig, MemorySize, VmConfig};

/// No answer takes as long; it bounds a test that hangs.
const WATCHDOG: Duration = Duration::from_secs(60);

/// A server on an event loop of its own, for a VM without vCPUs.
struct Server {
    path: PathBuf,
    vm: Arc<VmHandle>,
    presses: Arc<AtomicUsize>,
    exit: Arc<ExitSlot>,
    background: Background,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _directory: TempDir,
}

fn identity() -> Identity {
    Identity {
        id: Some("0123456789ab".parse().unwrap()),
        name: Some("web".parse().unwrap()),
        directory: None,
    }
}

fn config() -> VmConfig {
    VmConfig {
        initrd: Some("initrd".into()),
        rootfs: Some("root".parse().unwrap()),
        disks: vec!["a,readonly".parse().unwrap()],
        vsock: Some("./v,cid=7".parse().unwrap()),
        pmem: vec!["p,cow".parse().unwrap()],
        balloon: true,
        shares: vec!["src:/work".parse().unwrap()],
        vhost_user: vec!["fs=s,tag=t".parse().unwrap()],
        nets: vec!["user".parse().unwrap()],
        publish: vec!["8080:80".parse().unwrap()],
        cpus: 3,
        memory: MemorySize::from_mib(256),
        append: Some("a".into()),
        cmdline: Some("c".into()),
        console: ConsoleConfig::Off,
        nested: true,
        pmu: true,
        gdb: Some("127.0.0.1:1234".parse().unwrap()),
        timeout: Some("1h".parse().unwrap()),
        ..VmConfig::new("vmlinux")
    }
}

/// A VM that does not run: what is asked of it shows in the counter of its power button and in its exit.
fn vm(config: VmConfig) -> (Arc<VmHandle>, Arc<AtomicUsize>, Arc<ExitSlot>) {
    let presses = Arc::new(AtomicUsize::new(0));
    let exit = Arc::new(ExitSlot::new().unwrap());
    let mut metrics = MetricsRegistry::default();
    metrics.add("vcpu", "0".into(), Arc::new(ExitCounters::default()));
    let pauser = Arc::new(Pauser::new(Arc::new(Gate::new(1)), Vec::new()));
    let balloon = config.balloon.then(|| Balloon::new(config.memory.bytes()).unwrap());
    let balloon = balloon.map(|balloon| BalloonHandle::new(Arc::new(Mutex::new(balloon))));
    let button = Arc::new(PowerButton::new(Default::default(), presses.clone()).unwrap());
    let disks = config.rootfs.iter().chain(&config.disks).map(|disk| self::disk(disk.read_only)).collect();
    let vm = VmHandle::new(identity(), config, exit.clone(), button, pauser, metrics)
        .measured_by(ProcessMeter::new());
    let vm = vm.with_balloon(balloon).with_disks(disks);
    (Arc::new(vm), presses, exit)
}

/// A disk of 1 MiB, whatever the configuration says of it.
fn disk(read_only: bool) -> BlockHandle {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let disk = Disk::open(file.path(), read_only, ImageFormat::Detect).unwrap();
    let block = Block::new(disk, DiskId::default(), Default::default()).unwrap();
    BlockHandle::new(Arc::new(Mutex::new(block)))
}

impl Server {
    fn start() -> Self {
        Self::start_with(config())
    }

    fn start_with(config: VmConfig) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let (vm, presses, exit) = vm(config);
        let background = Background::start().unwrap();
        let server =
            ControlServer::new(ControlServer::listen(&path).unwrap(), vm.clone(), background.clone())
                .unwrap();
        let ends = Arc::new(AtomicBool::new(false));
        let has_ended = ends.clone();
        let thread = std::thread::spawn(move || {
            let mut events = EventManager::<Subscriber>::new().unwrap();
            events.add_subscriber(Box::new(server));
            while !has_ended.load(Ordering::SeqCst) {
                events.run_with_timeout(10_000).unwrap();
            }
        });
        Self { path, vm, presses, exit, background, ends, thread: Some(thread), _directory: directory }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(WATCHDOG)).unwrap();
        stream.set_write_timeout(Some(WATCHDOG)).unwrap();
        stream
    }

    fn client(&self) -> Client {
        Client::connect(&self.path).unwrap()
    }

    /// Sends `bytes` and no more, and returns all that comes back until the server closes.
    fn exchange(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // The server may have closed after the first of them.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }

    /// Whether the server still does what it is there for.
    fn is_well(&self) -> bool {
        self.client().get::<api::InstanceInfo>("/").is_ok_and(|info| info.id == "0123456789ab")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        // A client wakes the loop.
        drop(UnixStream::connect(&self.path));
        let joined = self.thread.take().unwrap().join();
        assert!(joined.is_ok() || std::thread::panicking(), "the server panicked");
    }
}

/// The status codes of the answers in `text`.
fn statuses(text: &str) -> Vec<u16> {
    // An answer's end has no line end.
    text.split("HTTP/1.1 ").filter_map(|rest| rest.get(..3)?.parse().ok()).collect()
}
