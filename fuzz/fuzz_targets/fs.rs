//! A shared folder whose back end goes away: what it left in the queues, whatever that is, is mvm's to answer.

#![no_main]

use std::cell::RefCell;
use std::fs::File;
use std::io::Write;
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;

use devices::virtio::vhost_user::VhostUser;
use fuzz::{MAX_STEPS, MEMORY, Rig, Script, Step};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

#[derive(Arbitrary, Debug)]
enum Action {
    Driver(Step),
    Leave,
}

/// The requests whose answers the front end awaits before it starts the queues.
const GET_FEATURES: u32 = 1;
const GET_PROTOCOL_FEATURES: u32 = 15;
/// VERSION_1, EVENT_IDX, INDIRECT_DESC and the protocol's features, of which there are none.
const FEATURES: u64 = 1 << 32 | 1 << 29 | 1 << 28 | 1 << 30;
const VERSION_AND_IS_REPLY: u32 = 1 | 4;

fn answer(request: u32, value: u64) -> Vec<u8> {
    let header = [request, VERSION_AND_IS_REPLY, 8];
    header.iter().flat_map(|word| word.to_le_bytes()).chain(value.to_le_bytes()).collect()
}

/// A back end that takes the queues and does nothing with them.
fn back_end() -> (VhostUser, UnixStream) {
    let (near, mut far) = UnixStream::pair().expect("sockets");
    let answers = [answer(GET_FEATURES, FEATURES), answer(GET_PROTOCOL_FEATURES, 0)];
    far.write_all(&answers.concat()).expect("it has room");
    (VhostUser::fs(near, &"tag".parse().expect("a tag")).expect("a device"), far)
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
    // The far end, for as long as it is there: of the device that was made last.
    let far = Rc::new(RefCell::new(None));
    let of_last = far.clone();
    let make = move || {
        let (device, far) = back_end();
        *of_last.borrow_mut() = Some(far);
        device
    };
    let line = Arc::new(EventFd::new(EFD_NONBLOCK).expect("an eventfd"));
    let mut rig = Rig::over(make, memory(), line, script.declined, script.halvings);
    for action in script.steps.iter().take(MAX_STEPS) {
        match action {
            Action::Driver(step) => {
                // A reset is something that a back end is asked for, and waited for.
                if matches!(step, Step::Reset { .. } | Step::SetRegister { .. }) {
                    far.borrow_mut().take();
                    rig.pump();
                }
                rig.step(step);
            }
            Action::Leave => drop(far.borrow_mut().take()),
        }
        rig.pump();
    }
    far.borrow_mut().take();
    rig.pump();
});
