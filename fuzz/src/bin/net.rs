//! The network device, with a process at the other end of its socket that keeps to the protocol or not.

#![no_main]

use std::cell::RefCell;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Duration;

use devices::virtio::net::{Backend, MacAddress, Net, NetSettings, Stream};
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

/// Both ends of the socket; the far one is `None` once it has gone.
struct Wire {
    near: UnixStream,
    far: Rc<RefCell<Option<UnixStream>>>,
}

impl HostSide for Wire {
    /// The far end reads nothing, and the socket is full.
    fn stall(&mut self) {
        while self.near.write(&[0; 1 << 16]).is_ok() {}
    }

    fn release(&mut self) {
        if let Some(far) = &mut *self.far.borrow_mut() {
            take(far);
        }
    }
}

/// The far end reads what there is.
fn take(far: &mut UnixStream) {
    while far.read(&mut [0; 1 << 16]).is_ok_and(|length| length > 0) {}
}

fuzz_target!(|script: Script<Action>| {
    let (near, far) = UnixStream::pair().expect("sockets");
    far.set_nonblocking(true).expect("a socket that does not wait");
    let settings = NetSettings {
        mac: MacAddress::new([2, 0, 0, 0, 0, 1]).expect("an address"),
        mtu: Some(1500),
        limits: Default::default(),
    };
    let far = Rc::new(RefCell::new(Some(far)));
    let wire = Wire { near: near.try_clone().expect("a descriptor is left"), far: far.clone() };
    let make = move || {
        let near = near.try_clone().expect("a descriptor is left");
        let backend = Backend::Stream(Stream::new(near).expect("a socket that does not wait"));
        Net::new(settings, vec![backend]).expect("a device")
    };
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
            (Action::Frame(frame), Some(far)) => {
                let _ = far.write_all(&[&(frame.len() as u32).to_be_bytes(), frame.as_slice()].concat());
            }
            (Action::Bytes(bytes), Some(far)) => drop(far.write_all(bytes)),
            (Action::Take, Some(_)) if rig.is_stalled() => {}
            (Action::Take, Some(far)) => take(far),
            (Action::Close, _) => *end = None,
            (_, None) => {}
        }
        drop(end);
        rig.pump();
    }
    rig.end(&script);
});
