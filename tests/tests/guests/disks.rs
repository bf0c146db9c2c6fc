//! Disks: what the guest writes is there, and what it must not write is not.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tempfile::TempDir;
use tests::{Boot, sparse_file};

/// Sets `$disk` to the disk whose ID is `data`, and `dd` to one that heeds `direct`: busybox has no buffers for that,
/// and goes through the cache.
const SETUP: &str = "for d in /sys/block/vd*; do [ \"$(cat $d/serial)\" = data ] && disk=/dev/${d##*/}; done
    dd() { /usr/bin/dd \"$@\"; }";

fn boot_with(disk: &Path, options: &str, script: &str) -> tests::Outcome {
    let boot = Boot::new().flag("--disk", format!("{},id=data{options}", disk.display()));
    boot.script(&format!("{SETUP}\n{script}")).run().expect_code(0)
}

fn directory() -> TempDir {
    TempDir::new().unwrap()
}

#[test]
fn what_is_written_and_flushed_is_there_after_a_reboot() {
    let directory = directory();
    let disk = sparse_file(directory.path(), "disk", 64 << 20);
    let script = "mke2fs $disk >/dev/null; mount $disk /mnt
        dd if=/dev/urandom of=/mnt/file bs=1M count=20 2>/dev/null
        echo sum=$(sha256sum </mnt/file | cut -c1-64); sync; reboot -f";
    let first = boot_with(&disk, "", script);
    let script = "mount -o ro $disk /mnt && echo sum=$(sha256sum </mnt/file | cut -c1-64)";
    let second = boot_with(&disk, "", script);
    assert_eq!(first.value("sum"), second.value("sum"));
    // The host's own checker agrees that the file system is whole.
    let fsck = std::process::Command::new("e2fsck").args(["-fn"]).arg(&disk).output().unwrap();
    assert!(fsck.status.success(), "{}", String::from_utf8_lossy(&fsck.stdout));
}

#[test]
fn large_and_small_requests_carry_the_right_bytes_both_ways() {
    let directory = directory();
    let disk = directory.path().join("disk");
    let content: Vec<u8> =
        (0..8_u32 << 20).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(&disk, &content).unwrap();
    // The first MiB is read in sectors and in one piece, then copied to the second in small direct writes.
    let script = "reads() { awk '{ print $1 }' /sys/block/${disk#/dev/}/stat; }
        echo all=$(dd if=$disk bs=1M iflag=direct 2>/dev/null | sha256sum | cut -c1-64)
        before=$(reads)
        echo small=$(dd if=$disk bs=512 count=2048 iflag=direct 2>/dev/null | sha256sum | cut -c1-64)
        echo requests=$(($(reads) - before))
        dd if=$disk of=$disk bs=4k count=256 seek=256 iflag=direct oflag=direct conv=notrunc 2>/dev/null; sync";
    let outcome = boot_with(&disk, "", script);
    assert_eq!(outcome.value("all"), sha256(&content));
    assert_eq!(outcome.value("small"), sha256(&content[..1 << 20]));
    assert_eq!(outcome.number("requests"), 2048);
    let mut expected = content.clone();
    expected.copy_within(..1 << 20, 1 << 20);
    assert!(fs::read(&disk).unwrap() == expected, "the copy is not the original");
}

#[test]
fn a_limit_holds_however_much_the_guest_asks_for() {
    let directory = directory();
    let disk = sparse_file(directory.path(), "disk", 64 << 20);
    // Four MiB at one a second, of which the first is there at once; then 60 requests at 20 a second.
    for (options, script) in [
        (",limit-bandwidth=1M:1M", "dd if=$disk of=/dev/null bs=64k count=64 iflag=direct 2>/dev/null"),
        (
            ",limit-iops=20:1",
            "for i in $(seq 60); do dd if=$disk of=/dev/null bs=4k count=1 skip=$((i * 200)) 2>/dev/null; done",
        ),
    ] {
        let boot = Boot::new().flag("--disk", format!("{},id=data{options}", disk.display()));
        let mut guest =
            boot.script(&format!("{SETUP}\necho limit-begins; {script}; echo limit-ends=$?")).start();
        guest.close_input();
        guest.wait_for("limit-begins");
        let start = std::time::Instant::now();
        guest.wait_for("limit-ends=0");
        let taken = start.elapsed();
        guest.finish().expect_code(0);
        assert!(taken.as_secs_f64() > 2.5, "{options}: {taken:?}");
    }
}

fn sha256(bytes: &[u8]) -> String {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let mut child = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap()[..64].to_owned()
}

#[test]
fn a_read_only_disk_refuses_writes() {
    let directory = directory();
    let disk = sparse_file(directory.path(), "disk", 1 << 20);
    fs::write(&disk, vec![7; 1 << 20]).unwrap();
    let script = "echo ro=$(cat /sys/block/${disk#/dev/}/ro)
        dd if=/dev/zero of=$disk bs=512 count=1 oflag=direct 2>/dev/null && echo written || echo refused";
    boot_with(&disk, ",readonly", script).expect_line("ro=1").expect_line("refused");
    assert!(fs::read(&disk).unwrap().iter().all(|byte| *byte == 7));
}

#[test]
fn discard_gives_the_space_back_and_zeroes_are_zero() {
    let directory = directory();
    let disk = directory.path().join("disk");
    fs::write(&disk, vec![7; 16 << 20]).unwrap();
    let before = fs::metadata(&disk).unwrap().blocks();
    let script = "blkdiscard -o 0 -l 8388608 $disk && echo discarded
        /usr/bin/blkdiscard -z -o 8388608 -l 1048576 $disk && echo zeroed
        echo zeros=$(dd if=$disk bs=1M skip=8 count=1 iflag=direct 2>/dev/null | tr -d '\\0' | wc -c)";
    boot_with(&disk, "", script).expect_line("discarded").expect_line("zeroed").expect_line("zeros=0");
    let metadata = fs::metadata(&disk).unwrap();
    assert_eq!(metadata.len(), 16 << 20, "a disk keeps its size");
    assert!(metadata.blocks() <= before / 2 + 64, "{} of {before} blocks are left", metadata.blocks());
    assert!(fs::read(&disk).unwrap()[9 << 20..].iter().all(|byte| *byte == 7), "the rest is as it was");
}

#[test]
fn a_disk_is_resized_while_the_guest_uses_it() {
    let directory = directory();
    let disk = sparse_file(directory.path(), "disk", 16 << 20);
    let boot = Boot::new().flag("--disk", format!("{},id=data", disk.display())).flag("--name", "resized");
    let script = "mke2fs $disk >/dev/null; mount $disk /mnt; echo before=$(blockdev --getsz $disk)
        echo ready; while [ $(blockdev --getsz $disk) = 32768 ]; do sleep 0.1; done
        echo after=$(blockdev --getsz $disk); dmesg | grep -c 'new size' | sed 's/^/told=/'
        dd if=/dev/zero of=$disk bs=1M seek=47 count=1 oflag=direct 2>/dev/null && echo written=yes";
    let mut guest = boot.script(&format!("{SETUP}\n{script}")).start();
    guest.wait_for("ready");
    let output = tests::run_mvm(["resize", "resized", "data", "48M"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let outcome = guest.finish().expect_code(0);
    assert_eq!((outcome.value("before"), outcome.value("after")), ("32768", "98304"), "{outcome}");
    outcome.expect_line("told=1").expect_line("written=yes");
    assert_eq!(fs::metadata(&disk).unwrap().len(), 48 << 20);
}

#[test]
fn a_full_host_disk_is_an_error_in_the_guest_and_no_more() {
    let Some(small) = SmallTmpfs::mount(4 << 20) else {
        eprintln!("skipped: mounting a small file system needs root");
        return;
    };
    let disk = sparse_file(small.path(), "disk", 64 << 20);
    let script =
        "dd if=/dev/zero of=$disk bs=1M count=16 oflag=direct 2>/dev/null && echo written || echo failed
        dd if=$disk of=/dev/null bs=1M count=1 iflag=direct 2>/dev/null && echo lives";
    boot_with(&disk, "", script).expect_line("failed").expect_line("lives");
}

/// A file system of its own, that is full soon.
struct SmallTmpfs(TempDir);

impl SmallTmpfs {
    fn mount(size: u64) -> Option<Self> {
        let directory = directory();
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "small"])
            .arg(directory.path())
            .status();
        mount.is_ok_and(|status| status.success()).then_some(Self(directory))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallTmpfs {
    fn drop(&mut self) {
        // What can't be unmounted now goes with the machine.
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn disks_come_in_the_order_of_the_flags_with_their_ids() {
    let directory = directory();
    let mut boot = Boot::new();
    for (index, id) in ["one", "two", "three"].into_iter().enumerate() {
        let disk = sparse_file(directory.path(), id, (index as u64 + 1) << 20);
        boot = boot.flag("--disk", format!("{},id={id}", disk.display()));
    }
    let script =
        "echo disks=$(for d in /sys/block/vd*; do echo ${d##*/}:$(cat $d/serial):$(cat $d/size); done)";
    let outcome = boot.flag("--rootfs", copy_of_rootfs(directory.path())).script(script).run().expect_code(0);
    let disks: Vec<_> = outcome.value("disks").split_whitespace().skip(1).take(3).collect();
    assert_eq!(disks, ["vdb:one:2048", "vdc:two:4096", "vdd:three:6144"], "{outcome}");
}

fn copy_of_rootfs(directory: &Path) -> std::path::PathBuf {
    let copy = directory.join("rootfs.ext4");
    fs::copy(tests::rootfs(), &copy).unwrap();
    copy
}

#[test]
fn two_vms_cannot_write_to_one_disk_but_can_read_it() {
    let directory = directory();
    let disk = sparse_file(directory.path(), "disk", 1 << 20);
    let mut first = Boot::new().flag("--disk", &disk).start();
    first.wait_for("init: started");
    for options in ["", ",readonly"] {
        let second = Boot::new().flag("--disk", format!("{}{options}", disk.display())).run();
        second.expect_code(2).expect("in use by another VM");
    }
    first.type_text("poweroff -f\n");
    first.finish().expect_code(0);

    let read_only = format!("{},readonly", disk.display());
    let mut first = Boot::new().flag("--disk", &read_only).start();
    first.wait_for("init: started");
    Boot::new().flag("--disk", &read_only).script("echo both").run().expect_code(0).expect_line("both");
    first.type_text("poweroff -f\n");
    first.finish().expect_code(0);
}
