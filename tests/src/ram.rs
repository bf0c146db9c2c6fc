//! The RAM of a guest, read from outside of mvm.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use rustix::process::Pid;

const PAGE: usize = 4096;
const HUGE_PAGE: u64 = 2 << 20;

/// A copy of a guest's RAM, in the order of host addresses.
#[derive(PartialEq, Eq)]
pub struct RamCopy(Vec<u8>);

impl RamCopy {
    /// Reads the RAM of the guest of mvm's process `pid`, which has `bytes` of it.
    ///
    /// # Panics
    ///
    /// The process has no mapping of that length.
    pub fn read(pid: Pid, bytes: u64) -> Self {
        let pid = pid.as_raw_nonzero();
        let start = ram_start(&format!("/proc/{pid}/maps"), bytes);
        let memory = File::open(format!("/proc/{pid}/mem")).expect("the memory of mvm can be opened");
        let mut copy = vec![0; usize::try_from(bytes).expect("it fits into this process")];
        memory.read_exact_at(&mut copy, start).expect("the guest's RAM can be read");
        Self(copy)
    }

    /// The numbers of the pages that differ, at most ten of them.
    pub fn changed_pages(&self, other: &Self) -> Vec<usize> {
        let pages = self.0.chunks(PAGE).zip(other.0.chunks(PAGE)).enumerate();
        pages.filter(|(_, (before, after))| before != after).map(|(page, _)| page).take(10).collect()
    }
}

/// Where the guest's RAM of `bytes` is in mvm's memory. It is a mapping, of which the kernel shows the first 2 MiB as
/// one of their own, as they have no huge page.
fn ram_start(maps: &str, bytes: u64) -> u64 {
    let mut text = String::new();
    File::open(maps).and_then(|mut file| file.read_to_string(&mut text)).expect("the mappings can be read");
    let end = text.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
        (rest.starts_with("rw") && end - start >= bytes - HUGE_PAGE).then_some(end)
    });
    end.unwrap_or_else(|| panic!("no mapping of {bytes} bytes in:\n{text}")) - bytes
}
