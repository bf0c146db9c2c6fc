//! A VM that is saved as a template, and those that go on from it: each becomes another one than the others.

use std::fs::{self, File};
use std::os::fd::AsRawFd;

use agent_protocol::Awakening;
use rustix::time::{ClockId, Timespec, clock_settime};

use crate::disk;
use crate::error::{During, Result, failure};

/// `RNDADDENTROPY` of Linux's include/uapi/linux/random.h: `_IOW('R', 3, int [2])`.
const ADD_ENTROPY: libc::Ioctl = 0x4008_5203_u32 as libc::Ioctl;
/// `RNDRESEEDCRNG` of the same: `_IO('R', 7)`.
const RESEED: libc::Ioctl = 0x5207;
/// Bytes of a seed: what the kernel's generator holds.
const SEED: usize = 32;
/// The same, and its bits, as the kernel takes them.
const NUMBERS: [libc::c_int; 2] = [256, 32];

/// `struct rand_pool_info` with a seed.
#[repr(C)]
struct Entropy {
    bits: libc::c_int,
    bytes: libc::c_int,
    seed: [u8; SEED],
}

/// The driver of folders of the host. Where the device has none, its state says nothing of the process that serves it.
const DRIVER: &str = "/sys/bus/virtio/drivers/virtiofs";

/// Takes the driver from devices that other processes serve, of which nothing is mounted, and notes them in `resting`.
pub fn rest(resting: &mut Vec<String>) -> Result<()> {
    // A kernel without the driver has none of these devices.
    for entry in fs::read_dir(DRIVER).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("virtio") {
            fs::write(format!("{DRIVER}/unbind"), &name).during("take the driver from a device")?;
            resting.push(name);
        }
    }
    Ok(())
}

/// Does what `awakening` says, and gives the devices that are `resting` their driver. No process of a container has run
/// yet.
pub fn awake(awakening: &Awakening, resting: Vec<String>) -> Result<()> {
    reseed(&awakening.seed)?;
    let Awakening { time, disks, .. } = awakening;
    let seconds = i64::try_from(time / 1_000_000_000).unwrap_or(i64::MAX);
    let nanoseconds = i64::try_from(time % 1_000_000_000).unwrap_or(0);
    clock_settime(ClockId::Realtime, Timespec { tv_sec: seconds, tv_nsec: nanoseconds })
        .during("set the clock")?;
    for device in resting {
        fs::write(format!("{DRIVER}/bind"), device).during("give a device its driver")?;
    }
    disks.iter().try_for_each(disk::wait_for)
}

/// Has all that the kernel draws from now on depend on `seed`.
fn reseed(seed: &[u8]) -> Result<()> {
    let seed: [u8; SEED] = seed.try_into().map_err(|_| failure(format!("a seed has {SEED} bytes")))?;
    let [bits, bytes] = NUMBERS;
    let entropy = Entropy { bits, bytes, seed };
    let random = File::options().write(true).open("/dev/urandom").during("open /dev/urandom")?;
    let number = random.as_raw_fd();
    // SAFETY: the kernel reads the structure, whose `bytes` says how long its end is, and which lives until the call
    // returns.
    let added = unsafe { libc::ioctl(number, ADD_ENTROPY, &raw const entropy) };
    // SAFETY: the call has no argument.
    let reseeded = if added < 0 { added } else { unsafe { libc::ioctl(number, RESEED) } };
    match reseeded {
        ..0 => Err(std::io::Error::last_os_error()).during("give the kernel a seed"),
        _ => Ok(()),
    }
}
