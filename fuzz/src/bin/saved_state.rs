//! A snapshot's state that anybody may have written: as a file, as the state of each device, and as a manifest. It is
//! taken or refused, and a device that has taken it keeps to what it does in front of any driver.

#![no_main]

// The program is not a library; these files of it do not depend on the others.
#[allow(dead_code, reason = "a snapshot is not made here")]
#[path = "../../../cli/src/snapshot/manifest.rs"]
mod manifest;
#[allow(dead_code, reason = "the name of the VM is not needed")]
#[path = "../../../cli/src/options.rs"]
mod options;
#[allow(dead_code, reason = "an image is not looked for here")]
#[path = "../../../cli/src/root_config.rs"]
mod root_config;
#[allow(dead_code, reason = "some parse words of the command line only")]
#[path = "../../../cli/src/values.rs"]
mod values;

use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use devices::legacy::{Cmos, PowerEvents, PowerRegisters, Serial};
use devices::virtio::VirtioDevice;
use devices::virtio::balloon::Balloon;
use devices::virtio::block::{Block, Disk, DiskId, ImageFormat};
use devices::virtio::console::{Console, ConsoleSink, WindowSize};
use devices::virtio::net::{Backend, MacAddress, Net, NetSettings, Stream};
use devices::virtio::pmem::{Pmem, PmemFile, PmemMode};
use devices::virtio::rng::Rng;
use devices::virtio::vsock::{Vsock, VsockListener};
use devices::{BusDevice, MachineEvent, MachineEvents, Section, Suspend};
use fuzz::altered::{Edit, alter};
use fuzz::{MAX_STEPS, Rig, Script, Step};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use vm_memory::GuestAddress;
use vmm::SavedVm;
use vmm_sys_util::eventfd::EventFd;

#[derive(Arbitrary, Debug)]
enum Action {
    Driver(Step),
    /// A new device goes on from the state with these changes.
    Alter(Vec<Edit>),
    /// A new device is to go on from this.
    Bytes(Vec<u8>),
}

#[derive(Arbitrary, Debug)]
enum Input {
    /// The file of a state, and changes of one that is valid.
    File(Vec<u8>),
    /// A manifest.
    Manifest(Vec<u8>),
    /// The state of a virtio device.
    Virtio(u8, Script<Action>),
    /// That of a PC's device, and what the guest writes and reads then, by port.
    Port(u8, Vec<Edit>, Vec<(u8, Option<u8>)>),
}

/// How long a device may take to answer: one exchange with its thread.
const DEADLINE: Duration = Duration::from_secs(5);

fn run<D: VirtioDevice>(make: impl FnMut() -> D + 'static, script: Script<Action>) {
    let mut rig = Rig::new(make, script.declined, script.halvings).with_host((), DEADLINE, &[]);
    for action in script.steps.iter().take(MAX_STEPS) {
        match action {
            Action::Driver(step) => rig.step(step),
            Action::Alter(edits) => rig.replace_by(|section| alter(section, edits)),
            Action::Bytes(bytes) => rig.replace_by(|section| section.bytes.clone_from(bytes)),
        }
    }
    rig.end(&script);
}

/// Who reads a console, and has room for all of it.
struct Sink(EventFd);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ConsoleSink for Sink {
    fn room(&mut self) -> usize {
        1 << 20
    }

    fn room_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    fn acknowledge(&mut self) {}
}

fn console() -> Console {
    let sink = Sink(EventFd::new(0).expect("an eventfd"));
    Console::new(Box::new(sink), WindowSize::default()).expect("a device")
}

fn run_net(script: Script<Action>) {
    let (near, _far) = UnixStream::pair().expect("sockets");
    let mac = MacAddress::new([2, 0, 0, 0, 0, 1]).expect("an address");
    let settings = NetSettings { mac, mtu: Some(1500), limits: Default::default() };
    let make = move || {
        let near = near.try_clone().expect("a descriptor is left");
        let stream = Stream::new(near).expect("a socket that does not wait");
        Net::new(settings, vec![Backend::Stream(stream)]).expect("a device")
    };
    run(make, script);
}

fn run_virtio(kind: u8, script: Script<Action>) {
    match kind % 7 {
        0 => run(Rng::new, script),
        1 => run(|| Balloon::new(128 << 20).expect("a device"), script),
        2 => {
            let (_file, path) = fuzz::memory_file(64 << 10);
            let open = move || fuzz::opened(|| Disk::open(&path, false, ImageFormat::Raw));
            run(move || Block::new(open(), DiskId::default(), Default::default()).expect("a device"), script);
        }
        3 => run(console, script),
        4 => run_net(script),
        5 => {
            let (_file, path) = fuzz::memory_file(2 << 20);
            let open = move || fuzz::opened(|| PmemFile::open(&path, PmemMode::Shared, ImageFormat::Raw));
            run(move || Pmem::new(open(), GuestAddress(1 << 32)).expect("a device"), script);
        }
        _ => {
            let path = fuzz::directory().join("s");
            let listen = move || VsockListener::open(&path).expect("a socket");
            run(move || Vsock::new(3, listen(), 8).expect("a thread"), script);
        }
    }
}

/// Who hears of a guest's end.
struct Deaf;

impl MachineEvents for Deaf {
    fn report(&self, _event: MachineEvent) {}
}

/// A device goes on from the altered state of another one like it, and then hears what the guest does.
fn run_port<D: BusDevice + Suspend>(make: impl Fn() -> D, edits: &[Edit], steps: &[(u8, Option<u8>)]) {
    let (saved, other) = (make(), make());
    saved.suspend().expect("it stops");
    let mut section: Section = saved.save().expect("it is suspended");
    // What is no list and no object has no values to be altered.
    alter(&mut section, edits);
    let _ = other.restore(&section);
    let _ = other.resume();
    for (port, value) in steps.iter().take(MAX_STEPS) {
        match value {
            Some(value) => other.write((port % 8).into(), &[*value]),
            None => other.read((port % 8).into(), &mut [0]),
        }
    }
    other.suspend().expect("it stops");
    let _ = other.save().expect("it is suspended");
}

/// A file of a state that a VM of a test was saved as.
const SAVED: &[u8] = include_bytes!("../../../vmm/tests/tiny/state-1");

/// What is read is written as the same.
fn read(file: &[u8]) {
    if let Ok(saved) = SavedVm::decode(file) {
        let again = saved.encode().expect("it can be written");
        assert!(SavedVm::decode(&again).is_ok());
    }
}

/// [`SAVED`] with `changes`: each a place, what is done there, and a byte.
fn altered(changes: &[u8]) -> Vec<u8> {
    let mut file = SAVED.to_vec();
    for change in changes.chunks_exact(4).take(64) {
        let [low, high, kind, byte] = [change[0], change[1], change[2], change[3]];
        let place = usize::from(u16::from_le_bytes([low, high])) % file.len().max(1);
        match kind % 8 {
            0 if place < file.len() => drop(file.remove(place)),
            1 => file.insert(place, byte),
            2 => file.truncate(place),
            _ => file.get_mut(place).into_iter().for_each(|old| *old = byte),
        }
    }
    file
}

fuzz_target!(|input: Input| {
    match input {
        Input::File(bytes) => {
            read(&bytes);
            read(&altered(&bytes));
        }
        Input::Manifest(bytes) => {
            if let Err(message) = manifest::Manifest::read(&bytes) {
                assert!(message.lines().count() == 1 && message.len() < 16 << 10, "{message}");
            }
        }
        Input::Virtio(kind, script) => run_virtio(kind, script),
        Input::Port(0, edits, steps) => run_port(Cmos::default, &edits, &steps),
        Input::Port(1, edits, steps) => {
            run_port(|| PowerRegisters::new(Arc::new(Deaf), PowerEvents::default()), &edits, &steps);
        }
        Input::Port(_, edits, steps) => {
            let line = || Arc::new(AtomicUsize::new(0));
            let make = || Serial::new(line(), Arc::new(Deaf), Box::new(io::sink())).expect("a device");
            run_port(make, &edits, &steps);
        }
    }
});
