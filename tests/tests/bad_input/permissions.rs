//! What a user without rights of root may not do.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use tempfile::TempDir;
use tests::{kernel, mvm};

use crate::{Files, expect};

/// Runs mvm as another user, who can read what is named but not more.
fn as_nobody(arguments: &[&str]) -> Option<Output> {
    let program = readable_copy_of_mvm();
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(program.path().join("mvm"))
        .args(arguments)
        .output();
    let output = output.ok()?;
    let refused = String::from_utf8_lossy(&output.stderr).starts_with("setpriv:");
    if refused {
        eprintln!("skipped: becoming another user needs root");
    }
    (!refused).then_some(output)
}

fn readable_copy_of_mvm() -> TempDir {
    use std::os::unix::fs::PermissionsExt;
    let directory = TempDir::new().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::copy(mvm(), directory.path().join("mvm")).unwrap();
    directory
}

fn readable_files() -> (TempDir, PathBuf, PathBuf) {
    let directory = readable_copy_of_mvm();
    let (kernel_copy, disk) = (directory.path().join("vmlinux"), directory.path().join("disk"));
    fs::copy(kernel("vmlinux"), &kernel_copy).unwrap();
    fs::write(&disk, vec![0; 4096]).unwrap();
    (directory, kernel_copy, disk)
}

#[test]
fn without_permission_for_kvm_the_message_says_how_to_get_it() {
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata("/dev/kvm").map(|metadata| metadata.permissions().mode());
    if mode.is_ok_and(|mode| mode & 0o006 != 0) {
        eprintln!("skipped: /dev/kvm is open to all users here");
        return;
    }
    let (_directory, kernel, _) = readable_files();
    if let Some(output) = as_nobody(&["boot", "--kernel", kernel.to_str().unwrap()]) {
        expect(&output, 3, &["no permission to open /dev/kvm", "usermod -aG kvm"]);
    }
}

#[test]
fn a_disk_that_may_only_be_read_says_how_to_use_it() {
    let (_directory, kernel, disk) = readable_files();
    let arguments = ["boot", "--kernel", kernel.to_str().unwrap(), "--disk", disk.to_str().unwrap()];
    if let Some(output) = as_nobody(&arguments) {
        expect(&output, 2, &["cannot write to disk", ",readonly"]);
    }
}

/// A tap of the host's, as long as a test lasts.
struct HostTap(&'static str);

impl HostTap {
    /// `None`, with the reason printed, where only root may.
    fn new(name: &'static str, options: &str) -> Option<Self> {
        let made =
            Command::new("ip").args(["tuntap", "add", name, "mode", "tap"]).args(options.split(' ')).output();
        if made.is_ok_and(|output| output.status.success()) {
            return Some(Self(name));
        }
        eprintln!("skipped: a tap needs root and ip");
        None
    }
}

impl Drop for HostTap {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", self.0]).output();
    }
}

#[test]
fn a_tap_that_is_not_as_asked_for_says_how_to_make_it() {
    let Some(_tap) = HostTap::new("mvmsingle", "user root") else { return };
    // One that is down would get a warning of its own.
    let up = Command::new("ip").args(["link", "set", "mvmsingle", "up"]).status();
    assert!(up.unwrap().success());
    let files = Files::new();
    expect(
        &files.run("--kernel VMLINUX --net tap=mvmsingle,queues=2"),
        2,
        &["tap mvmsingle has one queue", "ip tuntap add mvmsingle mode tap multi_queue"],
    );
    expect(
        &files.run("--kernel VMLINUX --net tap=mvmsingle --net tap=mvmsingle"),
        2,
        &["tap mvmsingle is in use by another VM"],
    );
    expect(&files.run("--kernel VMLINUX --net bridge=lo"), 2, &["lo is not a bridge", "type bridge"]);
    let (_directory, kernel, _) = readable_files();
    let run = |net: &str| as_nobody(&["boot", "--kernel", kernel.to_str().unwrap(), "--net", net]);
    if let Some(output) = run("tap=mvmsingle") {
        expect(&output, 3, &["no permission for tap mvmsingle", "mode tap user"]);
    }
    if let Some(output) = run("bridge=lo") {
        expect(&output, 3, &["no permission to make a tap", "tap=NAME"]);
    }
}
