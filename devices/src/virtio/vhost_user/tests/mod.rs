//! The front end against back ends of all kinds.

mod hostile;
mod lost;
mod peer;
mod served;
mod suspended;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use super::device::Model;
use super::{VhostUser, VhostUserError};
use crate::virtio::VirtioDevice;
use crate::virtio::testing::{Driver, FREE, REGIONS, WRITE};

const QUEUES: [u16; 2] = [16, 16];
/// For a back end that answers.
const DEADLINE: Duration = Duration::from_secs(30);

fn model() -> Model {
    let tag = "tag".parse().unwrap();
    Model { queue_sizes: &QUEUES, features: 1 << 3 | 1 << 4, ..super::fs::model(&tag) }
}

fn device(socket: UnixStream, deadline: Duration) -> Result<VhostUser, VhostUserError> {
    VhostUser::new(socket, model(), deadline)
}

/// The memory of the tests, in a file.
fn shared_memory() -> Arc<GuestMemoryMmap> {
    let ranges = REGIONS.map(|(at, size)| {
        let file = std::fs::File::from(memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(size as u64).unwrap();
        (GuestAddress(at), size, Some(FileOffset::new(file, 0)))
    });
    Arc::new(GuestMemoryMmap::from_ranges_with_files(&ranges).unwrap())
}

/// A driver for each queue.
fn drivers() -> Vec<Driver> {
    let memory = shared_memory();
    let mut drivers = Driver::several(&QUEUES);
    drivers.iter_mut().for_each(|driver| driver.memory = Arc::clone(&memory));
    drivers
}

fn activate(device: &mut VhostUser, drivers: &[Driver]) {
    device.activate(Driver::activation_of(drivers, 1 << 32 | 1 << 3)).unwrap();
}

/// Makes a FUSE request with this number available, with room for an answer behind it; gives its head.
fn request(driver: &mut Driver, number: u16) -> u16 {
    let at = FREE + 0x100 * u64::from(number % 64);
    driver.write(at, &[0; 0x100]);
    driver.write(at + 8, &u64::from(number).to_le_bytes());
    driver.add(&[(at, 40, 0), (at + 0x80, 64, WRITE)])
}

/// What was written as the answer to it.
fn answer(driver: &Driver, number: u16) -> Vec<u8> {
    driver.read(FREE + 0x100 * u64::from(number % 64) + 0x80, 16)
}

/// The answer ENOTCONN.
fn refusal(number: u16) -> Vec<u8> {
    [&16_u32.to_le_bytes()[..], &(-107_i32).to_le_bytes(), &u64::from(number).to_le_bytes()].concat()
}
