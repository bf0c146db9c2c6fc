//! Kernel and initrd, from their files into guest RAM.

/// The format of the Linux/x86 boot protocol.
#[cfg(target_arch = "x86_64")]
mod bzimage;
mod cmdline;
mod elf;
mod initrd;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use thiserror::Error;
use vm_memory::{GuestAddress, GuestMemoryMmap};

pub use crate::arch::current::kernel::{EntryPoint, Initrd, Kernel};
use crate::memory::MemoryError;
pub use cmdline::{CmdlineError, kernel_arguments};
pub use initrd::load as load_initrd;

/// Why a kernel or an initrd could not be loaded.
#[derive(Debug)]
pub struct LoadError {
    what: &'static str,
    path: PathBuf,
    problem: Problem,
}

impl fmt::Display for LoadError {
    /// A sentence: the file, and what is wrong with it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.what, self.path.display(), self.problem)
    }
}

impl std::error::Error for LoadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.problem.source()
    }
}

/// What is wrong with a file that is to be loaded, and how to fix it.
#[derive(Debug, Error)]
pub(crate) enum Problem {
    #[error("cannot be opened")]
    Open(#[source] io::Error),
    #[error("cannot be read")]
    Read(#[source] io::Error),
    #[error("is a directory, not a file")]
    Directory,
    #[error("is not a regular file")]
    NotAFile,
    #[error("is empty")]
    Empty,
    #[error("is not a kernel: neither an ELF vmlinux nor a bzImage")]
    UnknownFormat,
    #[error("is cut short: {part} needs {needed} bytes, the file has {length}")]
    Truncated { part: &'static str, needed: u64, length: u64 },
    #[error("is an ELF file for another machine ({0}), not for x86_64")]
    Machine(String),
    #[error(
        "is an ELF file of type {0}, not an executable; use the vmlinux of the kernel's build, not a module or object file"
    )]
    NotExecutable(u16),
    #[error("is a damaged ELF file: {0}")]
    Elf(&'static str),
    #[error("is a damaged ELF file: segments {0} and {1} overlap")]
    Overlap(usize, usize),
    #[error("has a segment at {0:#x}, below 1 MiB, where the boot structures are")]
    TooLow(u64),
    #[error("has its entry point at {0:#x}, outside of its segments")]
    Entry(u64),
    #[error("needs {} of memory, the guest has {}: use more --memory", Mib(*needed), Mib(*available))]
    TooBig { needed: u64, available: u64 },
    #[error(
        "has {}, but the kernel leaves room for {} in the guest's memory: use more --memory", Mib(*length), Mib(*room)
    )]
    NoRoom { length: u64, room: u64 },
    #[error("is a bzImage of boot protocol {0}, mvm needs 2.12 and 64 bits (Linux 3.8 or later)")]
    OldProtocol(String),
    #[error("is a damaged bzImage: {0}")]
    BzImage(String),
    #[error("cannot be loaded")]
    Memory(#[source] MemoryError),
}

/// Shows a number of bytes in MiB, rounded up to a tenth.
struct Mib(u64);

impl std::fmt::Display for Mib {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tenths = (u128::from(self.0) * 10).div_ceil(1 << 20);
        write!(f, "{}.{} MiB", tenths / 10, tenths % 10)
    }
}

impl Problem {
    fn of(self, what: &'static str, path: &Path) -> LoadError {
        LoadError { what, path: path.to_owned(), problem: self }
    }
}

const ELF_MAGIC: &[u8] = b"\x7fELF";
/// Where a bzImage has the magic number of its setup header.
const BZIMAGE_MAGIC_OFFSET: usize = 0x202;
const BZIMAGE_MAGIC: &[u8] = b"HdrS";

/// A file that is to be loaded, open.
pub struct BootFile {
    what: &'static str,
    path: PathBuf,
    file: File,
    length: u64,
}

impl BootFile {
    /// Opens the kernel at `path`.
    ///
    /// # Errors
    ///
    /// [`LoadError`] where it is not a regular file or is empty.
    pub fn kernel(path: &Path) -> Result<Self, LoadError> {
        Self::open("the kernel", path)
    }

    /// Opens the initrd at `path`.
    ///
    /// # Errors
    ///
    /// [`LoadError`] where it is not a regular file or is empty.
    pub fn initrd(path: &Path) -> Result<Self, LoadError> {
        Self::open("the initrd", path)
    }

    fn open(what: &'static str, path: &Path) -> Result<Self, LoadError> {
        let (file, length) = open(path).map_err(|problem| problem.of(what, path))?;
        Ok(Self { what, path: path.to_owned(), file, length })
    }
}

/// How much of the file is read first: all headers of most kernels.
const HEAD: usize = 4096;

/// Loads a kernel, of whichever format it is.
///
/// # Errors
///
/// [`LoadError`] names the file, what is wrong with it, and how to fix it.
pub fn load_kernel(memory: &GuestMemoryMmap, kernel: BootFile) -> Result<Kernel, LoadError> {
    let BootFile { what, path, file, length } = kernel;
    let load = || {
        let mut head = vec![0; HEAD];
        let read = read_up_to(&file, &mut head)?;
        head.truncate(read);
        if head.starts_with(ELF_MAGIC) {
            elf::load(memory, &elf::Source { file: &file, length, head: &head })
        } else if head.get(BZIMAGE_MAGIC_OFFSET..).is_some_and(|rest| rest.starts_with(BZIMAGE_MAGIC)) {
            bzimage::load(memory, file, length)
        } else {
            Err(Problem::UnknownFormat)
        }
    };
    load().map_err(|problem| problem.of(what, &path))
}

/// Opens a regular file that is not empty; returns its length too.
fn open(path: &Path) -> Result<(File, u64), Problem> {
    use std::os::unix::fs::OpenOptionsExt;

    // A FIFO without a writer would block the open.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(Problem::Open)?;
    let metadata = file.metadata().map_err(Problem::Read)?;
    if metadata.is_dir() {
        return Err(Problem::Directory);
    }
    if !metadata.is_file() {
        return Err(Problem::NotAFile);
    }
    match metadata.len() {
        0 => Err(Problem::Empty),
        length => Ok((file, length)),
    }
}

fn read_up_to(file: &File, buffer: &mut [u8]) -> Result<usize, Problem> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Problem::Read(error)),
        }
    }
    Ok(done)
}

/// The end of the RAM that kernel and initrd can be in, below the MMIO hole.
fn low_ram_end(memory: &GuestMemoryMmap) -> u64 {
    use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
    memory.find_region(GuestAddress(0)).map_or(0, |region| region.len())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::memory::reserve;

    fn error(path: &Path) -> String {
        let memory = reserve(&[(GuestAddress(0), 16 << 20)]).unwrap();
        let kernel = BootFile::kernel(path).and_then(|file| load_kernel(&memory, file));
        kernel.err().expect("it is not a kernel").to_string()
    }

    #[rstest]
    #[case("missing", None, "cannot be opened")]
    #[case("directory", None, "is a directory")]
    #[case("empty", Some(&b""[..]), "is empty")]
    #[case("text", Some(&b"#!/bin/sh\n"[..]), "is not a kernel")]
    #[case("magic", Some(&b"\x7fELF"[..]), "is cut short")]
    fn other_files_are_refused(#[case] name: &str, #[case] content: Option<&[u8]>, #[case] expected: &str) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("directory")).unwrap();
        let path = directory.path().join(name);
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        let error = error(&path);
        assert!(error.contains(expected) && error.contains(name), "{error}");
    }

    #[test]
    fn a_device_is_no_kernel() {
        assert!(error(Path::new("/dev/null")).contains("is not a regular file"));
    }
}
