//! VMs in guests.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;
use tests::{Boot, mvm};

/// A kernel of a few instructions: it says `text` on the serial port and powers off.
fn tiny_kernel(text: &str) -> Vec<u8> {
    const ADDRESS: u64 = 0x10_0000;
    // mov edx, 0x3f8; for each byte mov al, byte; out dx, al
    let mut code = vec![0xba, 0xf8, 0x03, 0, 0];
    code.extend(text.bytes().flat_map(|byte| [0xb0, byte, 0xee]));
    // mov dx, 0x600; mov al, S5 and the bit that enables it; out dx, al; hlt
    code.extend([0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, 0xf4]);
    let size = code.len() as u64;
    // An executable of 64 bits for x86_64, entered at its address, with one segment.
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    file.extend([ADDRESS, 64, 0].iter().flat_map(|field| field.to_le_bytes()));
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    file.extend([1, 0, 0, 0, 7, 0, 0, 0]);
    file.extend([0x1000, ADDRESS, ADDRESS, size, size, 0x1000].iter().flat_map(|field| field.to_le_bytes()));
    file.resize(0x1000, 0);
    file.extend(code);
    file
}

/// A file system with mvm and a kernel for it.
fn disk(directory: &TempDir) -> PathBuf {
    let (tree, disk) = (directory.path().join("tree"), directory.path().join("nested.ext4"));
    fs::create_dir(&tree).unwrap();
    fs::copy(mvm(), tree.join("mvm")).unwrap();
    fs::write(tree.join("kernel"), tiny_kernel("the innermost speaks\n")).unwrap();
    let mut make = Command::new("/sbin/mke2fs");
    make.args(["-q", "-t", "ext4", "-d"]).arg(&tree).arg(&disk).arg("32M");
    assert!(make.status().unwrap().success());
    disk
}

/// The parameter of whichever KVM module this host has, where it nests.
fn host_nests() -> bool {
    let nests = ["kvm_amd", "kvm_intel"].iter().any(|module| {
        let value = fs::read_to_string(format!("/sys/module/{module}/parameters/nested")).unwrap_or_default();
        ["1", "Y"].contains(&value.trim())
    });
    if !nests {
        let _ = writeln!(std::io::stderr(), "skipped: this host's KVM does not nest");
    }
    nests
}

#[test]
fn a_guest_runs_a_vm_of_its_own_where_it_may() {
    if !host_nests() {
        return;
    }
    let directory = TempDir::new().unwrap();
    let script = "grep -oE -m1 ' (svm|vmx) ' /proc/cpuinfo; ls /dev/kvm; mount -o ro /dev/vdb /mnt; \
        timeout 60 /mnt/mvm boot --kernel /mnt/kernel --memory 16M --timing; echo inner=$?; poweroff -f";
    let outcome = Boot::new().switch("--nested").flag("--disk", disk(&directory)).script(script).run();
    let outcome = outcome.expect_code(0).expect_line("/dev/kvm");
    assert_eq!(outcome.number("inner"), 0, "{outcome}");
    outcome.expect_line("the innermost speaks");
}

#[test]
fn a_guest_that_may_not_has_no_virtualization() {
    let script = "grep -cE ' (svm|vmx) ' /proc/cpuinfo; ls /dev/kvm || echo none; poweroff -f";
    Boot::new().script(script).run().expect_code(0).expect_line("0").expect_line("none");
}
