//! Persistent memory: files in the guest's memory, with and without a file system that maps them.

use std::fs;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Pid;
use tempfile::TempDir;
use tests::{Boot, Guest, sparse_file};

const MIB: u64 = 1 << 20;
/// The size of the file that guests read through EROFS.
const DATA: u64 = 48 * MIB;

fn directory() -> TempDir {
    TempDir::new().unwrap()
}

fn run(program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A file of 64 MiB with an ext4 that can be mapped: blocks are as large as pages.
fn ext4(directory: &TempDir) -> PathBuf {
    let path = sparse_file(directory.path(), "ext4", 64 * MIB);
    run("mke2fs", &["-q", "-F", "-t", "ext4", "-b", "4096", text(&path)]);
    path
}

/// Writes a file through a mapped file system and says its checksum.
const WRITE: &str =
    "mount -t ext4 -o dax=always /dev/pmem0 /mnt && grep -q 'pmem0.*dax=always' /proc/mounts && echo mapped
    dd if=/dev/urandom of=/mnt/file bs=1M count=8 2>/dev/null; sync
    echo sum=$(sha256sum </mnt/file | cut -c1-64); umount /mnt";

fn write(path: &Path, mode: &str) -> tests::Outcome {
    let boot = Boot::new().flag("--pmem", format!("{}{mode}", path.display()));
    boot.script(WRITE).run().expect_code(0).expect_line("mapped")
}

#[test]
fn what_a_guest_writes_to_a_mapped_file_system_is_in_the_file() {
    let directory = directory();
    let image = ext4(&directory);
    let outcome = write(&image, "");
    run("e2fsck", &["-fn", text(&image)]);
    let file = directory.path().join("file");
    run("debugfs", &["-R", &format!("dump /file {}", file.display()), text(&image)]);
    let sum = String::from_utf8(run("sha256sum", &[text(&file)])).unwrap();
    assert_eq!(&sum[..64], outcome.value("sum"));
    assert_eq!(fs::metadata(&file).unwrap().len(), 8 * MIB);
}

#[test]
fn what_a_guest_writes_to_copies_is_not_in_the_file() {
    let directory = directory();
    let image = ext4(&directory);
    let before = fs::read(&image).unwrap();
    let sum = write(&image, ",cow").value("sum").to_owned();
    assert_ne!(sum, "", "the guest reads what it wrote");
    assert!(fs::read(&image).unwrap() == before);
}

/// The sizes in KiB that smaps gives for the mapping of `path`: Rss and Pss.
fn mapping(pid: Pid, path: &Path) -> (u64, u64) {
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", pid.as_raw_nonzero())).unwrap();
    let lines = smaps.lines().skip_while(|line| !line.ends_with(text(path))).skip(1);
    let lines: Vec<_> = lines.take_while(|line| !line.contains('/')).collect();
    let value = |name: &str| {
        let line = lines.iter().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().strip_suffix(" kB").unwrap().parse().unwrap()
    };
    (value("Rss:"), value("Pss:"))
}

/// A guest that has read all of the image at `path`, and keeps running.
fn reader(path: &Path) -> Guest {
    let script = "cached() { sed -n 's/^Cached: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo; }
        mount -t erofs -o ro,dax=always /dev/pmem0 /mnt && grep -q 'pmem0.*dax=always' /proc/mounts && echo mapped
        before=$(cached); echo size=$(cat /mnt/data | wc -c); after=$(cached)
        echo grown=$((after > before ? after - before : 0)); echo done; read line";
    let mut guest = Boot::new().flag("--pmem", format!("{},readonly", path.display())).script(script).start();
    guest.wait_for("done");
    guest
}

#[test]
fn guests_that_read_one_image_share_its_pages_and_have_no_copies() {
    let directory = directory();
    let tree = directory.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let content: Vec<u8> = (0..u32::try_from(DATA).unwrap())
        .map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    fs::write(tree.join("data"), content).unwrap();
    let image = directory.path().join("image.erofs");
    run("mkfs.erofs", &[text(&image), text(&tree)]);
    run("truncate", &["-s", "%2M", text(&image)]);

    let first = reader(&image);
    let (alone, alone_share) = mapping(first.vm_pid(), &image);
    let second = reader(&image);
    for guest in [&first, &second] {
        let (rss, pss) = mapping(guest.vm_pid(), &image);
        println!("alone: Rss {alone} kB, Pss {alone_share} kB; of two: Rss {rss} kB, Pss {pss} kB");
        assert!(rss >= DATA >> 10, "all of it is mapped");
        assert!(pss * 100 <= rss * 55, "half of it belongs to each");
    }
    for mut guest in [first, second] {
        guest.type_text("\n");
        let outcome = guest.finish().expect_code(0).expect_line("mapped");
        assert_eq!(outcome.number("size"), DATA);
        println!("the guest's own page cache grew by {} kB", outcome.number("grown"));
        assert!(outcome.number("grown") < 4096, "{outcome}");
    }
}

#[test]
fn a_file_that_is_cut_off_ends_the_vm_with_a_reason() {
    let directory = directory();
    let path = sparse_file(directory.path(), "pmem", 64 * MIB);
    // It goes on using the file, so that a page is missed where the end comes late.
    let script = "echo ready; while :; do dd if=/dev/pmem0 of=/dev/null bs=1M 2>/dev/null; done";
    let mut guest = Boot::new().flag("--pmem", &path).script(script).start();
    guest.wait_for("ready");
    OpenOptions::new().write(true).open(&path).unwrap().set_len(2 * MIB).unwrap();
    guest.finish().expect_code(4).expect("a file of --pmem was truncated");
}
