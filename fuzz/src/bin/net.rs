//! The network device, with a process at the other end of its socket that keeps to the protocol or not, or with a tap.

#![no_main]

use std::cell::RefCell;
use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::rc::Rc;
use std::time::Duration;

use devices::virtio::net::{Backend, MacAddress, Net, NetSettings, Stream, Tap};
use fuzz::{HostSide, MAX_STEPS, Rig, Script, Step};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Action {
    Driver(Step),
    /// The guest sends a frame in buffers of these lengths.
    Send {
        lengths: Vec<u8>,
    },
    /// The guest makes room for frames.
    Room {
        lengths: Vec<u16>,
    },
    /// The guest sends a command.
    Command {
        class: u8,
        number: u8,
        bytes: Vec<u8>,
    },
    /// A frame comes.
    Frame(Vec<u8>),
    /// Bytes come that need be no frame.
    Bytes(Vec<u8>),
    /// The other end reads what there is.
    Take,
    /// The other end goes.
    Close,
}

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const CONTROL: usize = 2;
/// Where buffers are.
const BUFFERS: u64 = 0x8000;
/// The flag of a buffer that the device writes.
const WRITE: u16 = 2;

/// The guest makes room for frames in buffers of these lengths.
fn make_room(rig: &mut Rig<Net>, lengths: &[u16]) {
    for &length in lengths.iter().take(16) {
        rig.chain(RECEIVE, &[(BUFFERS, length.into(), WRITE)]);
    }
}

/// An end of what the device is connected by: a stream of frames, or packets as those of a tap.
enum End {
    Stream(UnixStream),
    Tap(UnixDatagram),
}

/// The header of a packet of a tap's (`virtio_net_hdr`).
const HEADER: [u8; 12] = [0; 12];

impl End {
    /// The device's end and the other one.
    fn pair(is_tap: bool) -> (Self, Self) {
        if is_tap {
            let (near, far) = UnixDatagram::pair().expect("sockets");
            far.set_nonblocking(true).expect("a socket that does not wait");
            return (Self::Tap(near), Self::Tap(far));
        }
        let (near, far) = UnixStream::pair().expect("sockets");
        far.set_nonblocking(true).expect("a socket that does not wait");
        (Self::Stream(near), Self::Stream(far))
    }

    fn backend(&self) -> Backend {
        match self {
            Self::Stream(near) => {
                let near = near.try_clone().expect("a descriptor is left");
                Backend::Stream(Stream::new(near).expect("a socket that does not wait"))
            }
            Self::Tap(near) => Backend::Tap(Tap::stand_in(near.try_clone().expect("a descriptor is left"))),
        }
    }

    fn another(&self) -> Self {
        match self {
            Self::Stream(end) => Self::Stream(end.try_clone().expect("a descriptor is left")),
            Self::Tap(end) => Self::Tap(end.try_clone().expect("a descriptor is left")),
        }
    }

    /// Writes until there is no room for more.
    fn fill(&self) {
        match self {
            Self::Stream(end) => while (&mut &*end).write(&[0; 1 << 16]).is_ok() {},
            Self::Tap(end) => while end.send(&[0; 1 << 10]).is_ok() {},
        }
    }

    /// Reads what there is.
    fn take(&self) {
        match self {
            Self::Stream(end) => while (&mut &*end).read(&mut [0; 1 << 16]).is_ok_and(|length| length > 0) {},
            Self::Tap(end) => while end.recv(&mut [0; 1 << 16]).is_ok() {},
        }
    }

    fn send(&self, bytes: &[u8]) {
        let _ = match self {
            Self::Stream(end) => (&mut &*end).write_all(bytes),
            Self::Tap(end) => end.send(bytes).map(drop),
        };
    }

    fn send_frame(&self, frame: &[u8]) {
        match self {
            Self::Stream(_) => self.send(&[&(frame.len() as u32).to_be_bytes(), frame].concat()),
            Self::Tap(_) => self.send(&[&HEADER, frame].concat()),
        }
    }
}

/// Both ends; the far one is `None` once it has gone.
struct Wire {
    near: End,
    far: Rc<RefCell<Option<End>>>,
}

impl HostSide for Wire {
    /// The far end reads nothing, and there is no room.
    fn stall(&mut self) {
        self.near.fill();
    }

    fn release(&mut self) {
        if let Some(far) = &*self.far.borrow() {
            far.take();
        }
    }
}

fuzz_target!(|script: Script<Action>| {
    // A bit that no feature of the device has.
    let (near, far) = End::pair(script.declined >> 61 & 1 == 1);
    let settings = NetSettings {
        mac: MacAddress::new([2, 0, 0, 0, 0, 1]).expect("an address"),
        mtu: Some(1500),
        limits: Default::default(),
    };
    let far = Rc::new(RefCell::new(Some(far)));
    let wire = Wire { near: near.another(), far: far.clone() };
    let make = move || Net::new(settings, vec![near.backend()]).expect("a device");
    let rig = Rig::new(make, script.declined, script.halvings % 5);
    let mut rig = rig.with_host(wire, Duration::from_secs(5), &[TRANSMIT]);
    make_room(&mut rig, &[2000; 8]);
    for action in script.steps.iter().take(MAX_STEPS) {
        if let Action::Driver(step) = action {
            rig.step(step);
        }
        let mut end = far.borrow_mut();
        match (action, &mut *end) {
            (Action::Driver(_), _) => {}
            (Action::Send { lengths }, _) => {
                let lengths = lengths.iter().map(|&length| (BUFFERS, u32::from(length), 0));
                rig.chain(TRANSMIT, &lengths.collect::<Vec<_>>());
            }
            (Action::Room { lengths }, _) => make_room(&mut rig, lengths),
            (Action::Command { class, number, bytes }, _) => {
                rig.write(BUFFERS, &[&[class % 8, number % 4], bytes.as_slice()].concat());
                rig.chain(
                    CONTROL,
                    &[(BUFFERS, 2, 0), (BUFFERS + 2, bytes.len() as u32, 0), (BUFFERS, 1, WRITE)],
                );
            }
            (Action::Frame(frame), Some(far)) => far.send_frame(frame),
            (Action::Bytes(bytes), Some(far)) => far.send(bytes),
            (Action::Take, Some(_)) if rig.is_stalled() => {}
            (Action::Take, Some(far)) => far.take(),
            (Action::Close, _) => *end = None,
            (_, None) => {}
        }
        drop(end);
        rig.pump();
    }
    rig.end(&script);
});
