//! A shared folder whose back end stalls or goes away: what it left in the queues, whatever that is, is mvm's to
//! answer.

#![no_main]

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use devices::virtio::vhost_user::VhostUser;
use fuzz::{HostSide, MAX_STEPS, MEMORY, Rig, Script, Step};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

#[derive(Arbitrary, Debug)]
enum Action {
    Driver(Step),
    Leave,
}

/// How long the back end may take to answer. It is short, for many runs a second.
const DEADLINE: Duration = Duration::from_millis(20);
/// The requests that are answered.
const GET_FEATURES: u32 = 1;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const GET_PROTOCOL_FEATURES: u32 = 15;
/// VERSION_1, EVENT_IDX, INDIRECT_DESC and the protocol's features, of which there are none.
const FEATURES: u64 = 1 << 32 | 1 << 29 | 1 << 28 | 1 << 30;
const VERSION_AND_IS_REPLY: u32 = 1 | 4;
const QUEUES: usize = 2;

/// A back end that takes the queues and does nothing with them, and answers unless it is stalled.
#[derive(Clone, Default)]
struct BackEnd {
    is_stalled: Arc<(Mutex<bool>, Condvar)>,
    /// Its socket: of the device that was made last.
    socket: Arc<Mutex<Option<UnixStream>>>,
}

impl HostSide for BackEnd {
    fn stall(&mut self) {
        *self.is_stalled.0.lock().expect("no panic") = true;
    }

    fn release(&mut self) {
        *self.is_stalled.0.lock().expect("no panic") = false;
        self.is_stalled.1.notify_all();
    }
}

impl BackEnd {
    fn device(&self) -> VhostUser {
        let (near, far) = UnixStream::pair().expect("sockets");
        *self.socket.lock().expect("no panic") = Some(far.try_clone().expect("a descriptor is left"));
        let is_stalled = self.is_stalled.clone();
        // It ends with the connection, or once it is stalled no more.
        std::thread::spawn(move || drop(serve(far, &is_stalled)));
        let mut device = VhostUser::fs(near, &"tag".parse().expect("a tag")).expect("a device");
        device.set_deadline(DEADLINE);
        device
    }

    fn leave(&self) {
        if let Some(socket) = self.socket.lock().expect("no panic").take() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

fn serve(mut socket: UnixStream, (is_stalled, changed): &(Mutex<bool>, Condvar)) -> io::Result<()> {
    let mut bases = [0_u32; QUEUES];
    loop {
        let mut header = [0; 12];
        socket.read_exact(&mut header)?;
        let [request, _, length] = words(&header);
        let mut payload = vec![0; length as usize];
        socket.read_exact(&mut payload)?;
        drop(changed.wait_while(is_stalled.lock().expect("no panic"), |is_stalled| *is_stalled));
        let value = match request {
            GET_FEATURES => FEATURES,
            GET_PROTOCOL_FEATURES => 0,
            SET_VRING_BASE => {
                let [index, base] = words(&payload);
                bases[index as usize] = base;
                continue;
            }
            GET_VRING_BASE => {
                let [index, _] = words(&payload);
                u64::from(bases[index as usize]) << 32 | u64::from(index)
            }
            _ => continue,
        };
        let header = [request, VERSION_AND_IS_REPLY, 8].map(u32::to_le_bytes).concat();
        socket.write_all(&[header, value.to_le_bytes().to_vec()].concat())?;
    }
}

fn words<const N: usize>(bytes: &[u8]) -> [u32; N] {
    std::array::from_fn(|index| u32::from_le_bytes(bytes[4 * index..][..4].try_into().expect("four bytes")))
}

/// Memory that another process could map.
fn memory() -> GuestMemoryMmap {
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "a file in memory");
    // SAFETY: the descriptor is new.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(MEMORY as u64).expect("memory");
    let range = (GuestAddress(0), MEMORY, Some(FileOffset::new(file, 0)));
    GuestMemoryMmap::from_ranges_with_files([range]).expect("memory")
}

fuzz_target!(|script: Script<Action>| {
    let back_end = BackEnd::default();
    let of_devices = back_end.clone();
    let make = move || of_devices.device();
    let line = Arc::new(EventFd::new(EFD_NONBLOCK).expect("an eventfd"));
    let rig = Rig::over(make, memory(), line, script.declined, script.halvings);
    let mut rig = rig.with_host(back_end.clone(), DEADLINE, &[0, 1]);
    for action in script.steps.iter().take(MAX_STEPS) {
        match action {
            Action::Driver(step) => rig.step(step),
            Action::Leave => back_end.leave(),
        }
        rig.pump();
    }
    if script.declined >> 62 & 1 == 0 {
        // What it has left in the queues is answered.
        back_end.leave();
        rig.pump();
        rig.end(&script);
    }
});
