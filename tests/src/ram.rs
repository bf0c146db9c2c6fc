//! The RAM of a guest, read from outside of mvm.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use rustix::process::Pid;

const PAGE: usize = 4096;
const HUGE_PAGE: u64 = 2 << 20;
/// How much is read at once, in bytes.
const PIECE: usize = 1 << 20;

/// A checksum of each page of a guest's RAM, in the order of host addresses.
#[derive(PartialEq, Eq)]
pub struct RamChecksums(Vec<u64>);

impl RamChecksums {
    /// Reads the RAM of the guest of mvm's process `pid`, which has `bytes` of it.
    ///
    /// # Panics
    ///
    /// The process has no mapping of that length.
    pub fn read(pid: Pid, bytes: u64) -> Self {
        let pid = pid.as_raw_nonzero();
        let start = ram_start(&format!("/proc/{pid}/maps"), bytes);
        let memory = File::open(format!("/proc/{pid}/mem")).expect("the memory of mvm can be opened");
        let mut piece = vec![0; PIECE];
        let mut checksums = Vec::new();
        let mut offset = 0;
        while offset < bytes {
            memory.read_exact_at(&mut piece, start + offset).expect("the guest's RAM can be read");
            checksums.extend(piece.chunks_exact(PAGE).map(checksum));
            offset += PIECE as u64;
        }
        Self(checksums)
    }

    /// The numbers of the pages that differ, at most ten of them.
    pub fn changed_pages(&self, other: &Self) -> Vec<usize> {
        let pages = self.0.iter().zip(&other.0).enumerate();
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

/// Fast, and not meant to resist an attacker.
fn checksum(page: &[u8]) -> u64 {
    let words = page.chunks_exact(8).filter_map(|word| word.try_into().ok()).map(u64::from_le_bytes);
    words.fold(0, |sum, word| (u64::rotate_left(sum, 5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95))
}
