//! The control socket: whatever a client says, the next one is answered.

#![no_main]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};

use devices::virtio::balloon::{Balloon, BalloonHandle};
use event_manager::{EventManager, SubscriberOps};
use instance::Identity;
use libfuzzer_sys::fuzz_target;
use vmm::ExitSlot;
use vmm::Gate;
use vmm::Pauser;
use vmm::VmConfig;
use vmm::parts::Background;
use vmm::parts::ControlServer;
use vmm::parts::MetricsRegistry;
use vmm::parts::PowerButton;
use vmm::parts::VmHandle;

/// Where what the client says is cut into pieces, which come one after the other. HTTP does not use this byte.
const CUT: u8 = 0xff;
/// The most rounds of the event loop for one client.
const MAX_ROUNDS: usize = 64;

fuzz_target!(|said: &[u8]| {
    let exit = Arc::new(ExitSlot::new().expect("an eventfd"));
    let line = Arc::new(AtomicUsize::new(0));
    let button = Arc::new(PowerButton::new(Default::default(), line).expect("a timer"));
    let pauser = Arc::new(Pauser::new(Arc::new(Gate::new(0)), Vec::new()));
    let vm = VmHandle::new(
        Identity::default(),
        VmConfig::new("vmlinux"),
        exit,
        button,
        pauser,
        MetricsRegistry::default(),
    );
    let balloon = Balloon::new(512 << 20).expect("a timer");
    let vm = vm.with_balloon(Some(BalloonHandle::new(Arc::new(Mutex::new(balloon)))));
    let path = fuzz::directory().join("control");
    let _ = std::fs::remove_file(&path);
    let mut events = EventManager::new().expect("epoll");
    let background = Background::start().expect("a thread");
    let listener = ControlServer::listen(&path).expect("a socket");
    events.add_subscriber(ControlServer::new(listener, Arc::new(vm), background).expect("a server"));
    let mut pump = || {
        for _ in 0..MAX_ROUNDS {
            if events.run_with_timeout(0).expect("the event loop runs") == 0 {
                break;
            }
        }
    };
    let connect = || {
        let client = UnixStream::connect(&path).expect("the server listens");
        client.set_nonblocking(true).expect("a socket that does not wait");
        client
    };
    let mut client = connect();
    for piece in said.split(|byte| *byte == CUT) {
        let _ = client.write_all(piece);
        pump();
    }
    let _ = client.read(&mut [0; 1 << 16]);
    let mut next = connect();
    next.write_all(b"GET /version HTTP/1.1\r\n\r\n").expect("the server reads");
    pump();
    let mut answer = [0; 12];
    next.read_exact(&mut answer).expect("the server answers");
    assert_eq!(&answer, b"HTTP/1.1 200");
});
