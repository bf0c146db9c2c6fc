//! The socket device: packets as a guest sends them, nearly right more often than not, with processes of the host
//! that connect, listen, talk and leave.

#![no_main]

use std::cell::RefCell;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::Duration;

use devices::virtio::vsock::{Vsock, VsockListener};
use fuzz::{HostSide, MAX_STEPS, Rig, Script, Step};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

/// What a packet's header has that no right one has: CIDs, type, length and counts.
#[derive(Arbitrary, Debug)]
struct Odd {
    cids: [u64; 2],
    kind: u16,
    length: u32,
    buf_alloc: u32,
    fwd_cnt: u32,
}

/// A packet, with a header that is right as far as it goes.
#[derive(Arbitrary, Debug)]
struct Packet {
    guest_port: u8,
    host_port: u8,
    op: u8,
    flags: u8,
    buf_alloc: u16,
    fwd_cnt: u8,
    payload: u8,
}

#[derive(Arbitrary, Debug)]
enum Action {
    Driver(Step),
    /// The guest sends a packet.
    Send(Packet),
    SendOdd(Packet, Odd),
    /// The guest makes room for packets.
    Room {
        lengths: Vec<u16>,
    },
    /// A process of the host connects to a port of the guest, or says something else.
    Connect {
        port: u8,
        says: Option<Vec<u8>>,
    },
    /// A process of the host sends, reads, or leaves.
    Write {
        socket: u8,
        bytes: Vec<u8>,
    },
    Read {
        socket: u8,
    },
    Close {
        socket: u8,
    },
}

const CID: u32 = 3;
const HOST: u64 = 2;
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Where packets are sent from, and where they come to.
const SENT: u64 = 0x1000;
const RECEIVED: u64 = 0x8000;
const WRITE: u16 = 2;
/// The length of a packet's header.
const HEADER: u32 = 44;
/// Ports of the host: two with a listener, one without, and those of the first connections that
/// processes of the host begin.
const HOST_PORTS: [u32; 6] = [80, 81, 82, 1 << 30, (1 << 30) + 1, (1 << 30) + 2];
/// The most sockets of a run.
const MAX_SOCKETS: usize = 16;

fn path() -> PathBuf {
    fuzz::directory().join("v")
}

/// Those who listen for connections of the guest.
fn listeners() -> &'static [UnixListener] {
    static LISTENERS: OnceLock<Vec<UnixListener>> = OnceLock::new();
    LISTENERS.get_or_init(|| {
        let listen = |port: u32| {
            let path = format!("{}_{port}", path().display());
            let _ = std::fs::remove_file(&path);
            let listener = UnixListener::bind(path).expect("a socket");
            listener.set_nonblocking(true).expect("a socket that does not wait");
            listener
        };
        vec![listen(HOST_PORTS[0]), listen(HOST_PORTS[1])]
    })
}

impl Packet {
    /// The first word of a connection that the guest begins.
    const REQUEST: Self =
        Self { guest_port: 0, host_port: 0, op: 1, flags: 0, buf_alloc: 0x1000, fwd_cnt: 0, payload: 0 };

    fn bytes(&self, odd: Option<&Odd>) -> Vec<u8> {
        let usual = Odd {
            cids: [CID.into(), HOST],
            kind: 1,
            length: self.payload.into(),
            buf_alloc: self.buf_alloc.into(),
            fwd_cnt: self.fwd_cnt.into(),
        };
        let Odd { cids, kind, length, buf_alloc, fwd_cnt } = odd.unwrap_or(&usual);
        let mut bytes = cids.map(u64::to_le_bytes).concat();
        bytes.extend((1024 + u32::from(self.guest_port) % 3).to_le_bytes());
        bytes.extend(HOST_PORTS[usize::from(self.host_port) % HOST_PORTS.len()].to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(u16::from(self.op % 9).to_le_bytes());
        bytes.extend(u32::from(self.flags).to_le_bytes());
        bytes.extend(buf_alloc.to_le_bytes());
        bytes.extend(fwd_cnt.to_le_bytes());
        bytes
    }
}

/// The guest sends `packet`.
fn send(rig: &mut Rig<Vsock>, packet: &Packet, odd: Option<&Odd>) {
    let header = packet.bytes(odd);
    rig.write(SENT, &header);
    rig.chain(TRANSMIT, &[(SENT, header.len() as u32, 0), (RECEIVED, packet.payload.into(), 0)]);
}

/// The guest makes room for packets of these lengths.
fn make_room(rig: &mut Rig<Vsock>, lengths: &[u16]) {
    for &length in lengths.iter().take(16) {
        rig.chain(RECEIVE, &[(RECEIVED, length.into(), WRITE)]);
    }
}

/// The ends of connections that processes of the host have.
type Sockets = Rc<RefCell<Vec<UnixStream>>>;

/// Processes of the host, which neither read nor leave while they are stalled.
struct Processes(Sockets);

impl HostSide for Processes {
    fn release(&mut self) {
        self.0.borrow_mut().iter_mut().for_each(read_all);
    }
}

fn read_all(socket: &mut UnixStream) {
    while socket.read(&mut [0; 1 << 16]).is_ok_and(|length| length > 0) {}
}

/// The guest sends on the first connection of either side as much as sockets and the device hold.
fn flood(rig: &mut Rig<Vsock>) {
    let length = RECEIVED as u32;
    let usual = Odd { cids: [CID.into(), HOST], kind: 1, length, buf_alloc: 0x1000, fwd_cnt: 0 };
    for (guest_port, host_port) in [(0, 0), (1, 3)] {
        let packet = Packet { guest_port, host_port, op: 5, ..Packet::REQUEST };
        for _ in 0..8 {
            rig.write(SENT, &packet.bytes(Some(&usual)));
            rig.chain(TRANSMIT, &[(SENT, HEADER, 0), (RECEIVED, length, 0)]);
        }
    }
}

/// A process of the host connects and says `line`.
fn connect(line: &[u8]) -> Option<UnixStream> {
    let mut socket = UnixStream::connect(path()).ok()?;
    socket.set_nonblocking(true).expect("a socket that does not wait");
    let _ = socket.write_all(line);
    Some(socket)
}

fuzz_target!(|input: (bool, Script<Action>)| {
    let (is_plain, script) = input;
    let listeners = listeners();
    let make = || {
        let listener = VsockListener::open(&path()).expect("a socket");
        Vsock::new(CID, listener, 8).expect("a thread")
    };
    // A packet takes a few descriptors.
    let rig = Rig::new(make, script.declined, script.halvings % 5);
    let sockets = Sockets::default();
    // The device's thread does not wait for them.
    let mut rig = rig.with_host(Processes(sockets.clone()), Duration::from_secs(5), &[TRANSMIT]);
    if !is_plain {
        // With a connection from either side there is more to do wrong.
        make_room(&mut rig, &[300; 8]);
        send(&mut rig, &Packet::REQUEST, None);
        sockets.borrow_mut().extend(connect(b"CONNECT 1025\n"));
        rig.pump();
        send(&mut rig, &Packet { guest_port: 1, host_port: 3, op: 2, ..Packet::REQUEST }, None);
    }
    for action in script.steps.iter().take(MAX_STEPS) {
        let of = |socket: &u8| usize::from(*socket) % MAX_SOCKETS;
        match action {
            Action::Driver(step) => {
                rig.step(step);
                if matches!(step, Step::Stall) {
                    flood(&mut rig);
                }
            }
            Action::Send(packet) => send(&mut rig, packet, None),
            Action::SendOdd(packet, odd) => send(&mut rig, packet, Some(odd)),
            Action::Room { lengths } => make_room(&mut rig, lengths),
            Action::Connect { port, says } if sockets.borrow().len() < MAX_SOCKETS => {
                let line = format!("CONNECT {}\n", 1024 + u32::from(*port) % 3);
                sockets.borrow_mut().extend(connect(says.as_deref().unwrap_or(line.as_bytes())));
            }
            Action::Write { socket, bytes } => {
                sockets.borrow_mut().get_mut(of(socket)).map(|socket| socket.write_all(bytes));
            }
            Action::Read { .. } | Action::Close { .. } if rig.is_stalled() => {}
            Action::Read { socket } => {
                sockets.borrow_mut().get_mut(of(socket)).map(|socket| socket.read(&mut [0; 1 << 16]));
            }
            Action::Close { socket } if of(socket) < sockets.borrow().len() => {
                drop(sockets.borrow_mut().remove(of(socket)));
            }
            Action::Connect { .. } | Action::Close { .. } => {}
        }
        rig.pump();
        for listener in listeners {
            while let Ok((socket, _)) = listener.accept() {
                socket.set_nonblocking(true).expect("a socket that does not wait");
                if sockets.borrow().len() < MAX_SOCKETS {
                    sockets.borrow_mut().push(socket);
                }
            }
        }
    }
    if script.declined >> 63 == 0 {
        // The device answers packets, and takes no more while too many answers have no room.
        rig.settle(|rig| {
            if rig.has_room(RECEIVE, 1) {
                make_room(rig, &[300]);
            }
        });
    }
    drop(rig);
    // Connections that came too late are not the next run's.
    listeners.iter().for_each(|listener| while listener.accept().is_ok() {});
});
