//! What tests that boot real guests share: the program, the kernels, and a guest that runs a script.
//!
//! `tests/run` builds what is needed and says where it is in the environment; it also decides whether the tests
//! run on this host's KVM or in the KVM lab.

// This crate is test code as a whole: what fails here fails a test.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a panic is a failed test")]

mod guest;
mod network;
mod ram;
mod terminal;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

pub use guest::{Boot, Guest, Outcome};
pub use network::{HostLink, host};
pub use ram::RamCopy;
pub use terminal::Terminal;

/// What `tests/run` says in the variable `name`.
pub fn from_environment(name: &str) -> PathBuf {
    match std::env::var_os(name) {
        Some(path) => path.into(),
        None => panic!("{name} is not set: run these tests with tests/run"),
    }
}

/// The program under test.
pub fn mvm() -> PathBuf {
    from_environment("MVM_BIN")
}

/// A file of mvm's own kernel: `vmlinux` or `bzImage`.
pub fn kernel(file: &str) -> PathBuf {
    from_environment("MVM_KERNEL").join(file)
}

/// The kernel of Debian's cloud images.
pub fn debian_kernel() -> PathBuf {
    from_environment("MVM_DEBIAN_KERNEL")
}

/// The root file system of `tools/rootfs`, not to be written to.
pub fn rootfs() -> PathBuf {
    from_environment("MVM_ROOTFS")
}

/// The same as an initrd.
pub fn initrd() -> PathBuf {
    from_environment("MVM_INITRD")
}

/// The program `tests/programs/vsock.c`, for a guest.
pub fn vsock_program() -> PathBuf {
    from_environment("MVM_VSOCK")
}

/// The disk of a machine container, of `tools/debian-image`, not to be written to.
pub fn debian_image() -> PathBuf {
    from_environment("MVM_DEBIAN_IMAGE")
}

/// A root file system with fio, not to be written to.
pub fn fio_rootfs() -> PathBuf {
    from_environment("MVM_FIO_ROOTFS")
}

/// A copy of `image` in `directory`, with holes where it has holes.
pub fn sparse_copy(image: &Path, directory: &Path) -> PathBuf {
    let copy = directory.join("disk");
    let status = Command::new("cp").arg(image).arg(&copy).status().expect("cp can be run");
    assert!(status.success(), "{} cannot be copied", image.display());
    copy
}

/// The program `tests/programs/udp.c`, for a guest.
pub fn udp_program() -> PathBuf {
    from_environment("MVM_UDP")
}

/// The directory with what the VMs of containers are made of.
pub fn container_assets() -> PathBuf {
    from_environment("MVM_ASSETS")
}

/// The image of `tools/busybox-image`, an archive.
pub fn container_image() -> PathBuf {
    from_environment("MVM_CONTAINER_IMAGE")
}

/// The OCI layout of `tools/debian-containers`.
pub fn debian_containers() -> PathBuf {
    from_environment("MVM_DEBIAN_CONTAINERS")
}

/// A file of `length` bytes in `directory`, all holes.
pub fn sparse_file(directory: &Path, name: &str, length: u64) -> PathBuf {
    let path = directory.join(name);
    std::fs::File::create(&path).and_then(|file| file.set_len(length)).expect("a file can be made");
    path
}

/// Runs mvm with `arguments` to its end, without input.
pub fn run_mvm<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Output {
    Command::new(mvm()).args(arguments).stdin(Stdio::null()).output().expect("mvm can be run")
}

/// The program `tests/programs/hostile.c`, for a container.
pub fn hostile_program() -> PathBuf {
    from_environment("MVM_HOSTILE")
}

/// The program `tests/programs/locks.c`, for a container and for this host.
pub fn locks_program() -> PathBuf {
    from_environment("MVM_LOCKS")
}
