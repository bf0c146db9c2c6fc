//! Requests that fail, and disks that can't be opened.

use std::os::unix::fs::PermissionsExt;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_RO, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::super::super::testing::{Descriptor, INDIRECT, NEXT};
use super::super::config::SEG_MAX;
use super::super::{DiskError, DiskIdError};
use super::*;

const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

#[test]
fn what_lies_outside_of_the_disk_or_is_no_whole_sector_fails() {
    for with in BOTH {
        let file = image(4);
        let before = content(file.path());
        let mut rig = Rig::new(with, file.path(), false);
        for (sector, length) in
            [(4, 512), (3, 1024), (u64::MAX, 512), (u64::MAX / 512, 512), (0, 100), (0, 0)]
        {
            for (kind, flags) in [(VIRTIO_BLK_T_IN, WRITE), (VIRTIO_BLK_T_OUT, 0)] {
                assert_eq!(
                    rig.request(kind, sector, &[(DATA, length, flags)]),
                    (IO_ERROR, 1),
                    "{sector} {length}"
                );
            }
        }
        for (sector, sectors) in [(4, 1), (0, 5), (u64::MAX, 1), (0, u32::MAX), (1, 0)] {
            for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
                assert_eq!(rig.range(kind, sector, sectors, 0), (IO_ERROR, 1));
            }
        }
        assert_eq!(content(file.path()), before);
        assert!(!rig.driver.counters.broken());
    }
}

#[test]
fn unknown_requests_and_flags_are_unsupported() {
    let file = image(4);
    let mut rig = Rig::new(With::Direct, file.path(), false);
    for kind in [2, 3, 5, 14, 99, u32::MAX] {
        assert_eq!(rig.request(kind, 0, &[]), (UNSUPPORTED, 1));
    }
    assert_eq!(rig.range(VIRTIO_BLK_T_DISCARD, 0, 1, 1), (UNSUPPORTED, 1));
    assert_eq!(rig.range(VIRTIO_BLK_T_WRITE_ZEROES, 0, 1, 2), (UNSUPPORTED, 1));
    assert_eq!(content(file.path())[..512], [1; 512]);
}

#[test]
fn a_range_request_has_one_whole_range() {
    let file = image(4);
    let mut rig = Rig::new(With::Direct, file.path(), false);
    for length in [0, 15, 17, 32] {
        rig.driver.write(DATA, &[0; 32]);
        assert_eq!(rig.request(VIRTIO_BLK_T_DISCARD, 0, &[(DATA, length, 0)]), (IO_ERROR, 1));
    }
}

#[test]
fn more_data_buffers_than_seg_max_fail() {
    for with in BOTH {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let mut rig = Rig::new(with, file.path(), false);
        assert_eq!(rig.request(VIRTIO_BLK_T_IN, 0, &[(DATA, 512, WRITE); SEG_MAX as usize]).0, 0);
        // No chain in the queue itself is as long.
        let place = 0x100_0000;
        for (count, expected) in [(SEG_MAX, 0), (SEG_MAX + 3, IO_ERROR)] {
            let (header, status) = rig.header(VIRTIO_BLK_T_IN, 0);
            let describe = |index, (address, length, flags)| {
                let next = if index == count + 1 { 0 } else { NEXT };
                let descriptor = Descriptor { address, length, flags: flags | next, next: index + 1 };
                rig.driver.describe(place, index, descriptor);
            };
            describe(0, (header, 16, 0));
            (1..=count).for_each(|index| describe(index, (DATA, 512, WRITE)));
            describe(count + 1, (status, 1, WRITE));
            rig.driver.add(&[(place, u32::from(count + 2) * 16, INDIRECT)]);
            rig.run(1);
            rig.driver.take_used();
            assert_eq!(rig.driver.read(status, 1), [expected], "{count} buffers");
        }
    }
}

#[test]
fn a_read_only_disk_takes_no_writes() {
    for with in BOTH {
        let file = image(4);
        let before = content(file.path());
        let mut rig = Rig::new(with, file.path(), true);
        assert_eq!(rig.block.features() & (1 << VIRTIO_BLK_F_RO), 1 << VIRTIO_BLK_F_RO);
        assert_eq!(rig.block.features() & (1 << VIRTIO_BLK_F_DISCARD), 0);
        assert_eq!(rig.write(0, &[9; 512]), (IO_ERROR, 1));
        for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
            assert_eq!(rig.range(kind, 0, 1, 0), (IO_ERROR, 1));
        }
        assert_eq!(rig.read(1, 512), (0, 513, vec![2; 512]));
        assert_eq!(rig.request(VIRTIO_BLK_T_FLUSH, 0, &[]), (0, 1));
        assert_eq!(content(file.path()), before);
    }
}

#[test]
fn a_read_past_the_end_of_a_file_that_was_cut_off_fails() {
    for with in BOTH {
        let file = image(8);
        let mut rig = Rig::new(with, file.path(), false);
        file.as_file().set_len(3 * 512 + 100).unwrap();
        let (status, written, data) = rig.read(2, 2048);
        assert_eq!((status, written), (IO_ERROR, 512 + 100 + 1));
        assert_eq!(data[..612], [vec![3; 512], vec![4; 100]].concat());
        assert_eq!(rig.read(7, 512).0, IO_ERROR);
        assert_eq!(rig.read(0, 512).0, 0);
    }
}

/// A file system that is unmounted when it's dropped.
pub(super) struct MountedFs(tempfile::TempDir);

impl MountedFs {
    /// A file system of `kind`; `None`, where we may not mount.
    pub(super) fn new(kind: &str, options: &str) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mount = format!("mount -t {kind} -o {options} {kind} {}", directory.path().display());
        runs(&mount).then_some(Self(directory))
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for MountedFs {
    fn drop(&mut self) {
        runs(&format!("umount -l {}", self.path().display()));
    }
}

/// Whether a command succeeds.
fn runs(command: &str) -> bool {
    let output = std::process::Command::new("sh").args(["-c", command]).output();
    output.is_ok_and(|output| output.status.success())
}

#[test]
fn a_full_file_system_fails_the_write_and_leaves_the_device_working() {
    let Some(directory) = MountedFs::new("tmpfs", "size=64k") else {
        eprintln!("skipped: a file system to fill can't be mounted without root");
        return;
    };
    for with in BOTH {
        let file = tempfile::NamedTempFile::new_in(directory.path()).unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let mut rig = Rig::new(with, file.path(), false);
        let length = 0x1_8000;
        assert_eq!(rig.request(VIRTIO_BLK_T_OUT, 0, &[(DATA, length, 0)]), (IO_ERROR, 1));
        assert_eq!(rig.range(VIRTIO_BLK_T_WRITE_ZEROES, 512, 512, 0), (IO_ERROR, 1));
        assert_eq!(rig.range(VIRTIO_BLK_T_DISCARD, 0, 2048, 0), (0, 1));
        assert_eq!(rig.write(0, &[1; 512]), (0, 1));
    }
}

#[test]
fn only_files_and_block_devices_are_disks() {
    let kind = |path: &Path| Disk::open(path, true, ImageFormat::Detect).unwrap_err().to_string();
    assert!(kind(Path::new("/")).contains("it is a directory"));
    assert!(kind(Path::new("/dev/null")).contains("it is a character device"));
    let directory = tempfile::tempdir().unwrap();
    assert!(matches!(Disk::open(directory.path(), false, ImageFormat::Detect), Err(DiskError::Kind { .. })));
    let fifo = directory.path().join("fifo");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    assert!(kind(&fifo).contains("it is a FIFO"));
    assert!(kind(&directory.path().join("none")).starts_with("cannot open disk"));
}

#[test]
fn a_disk_has_whole_sectors_and_at_least_one() {
    let file = tempfile::NamedTempFile::new().unwrap();
    for bytes in [0, 511] {
        file.as_file().set_len(bytes).unwrap();
        assert!(
            matches!(Disk::open(file.path(), false, ImageFormat::Detect), Err(DiskError::TooSmall { bytes: b, .. }) if b == bytes)
        );
    }
    file.as_file().set_len(1535).unwrap();
    assert_eq!(Disk::open(file.path(), false, ImageFormat::Detect).unwrap().size(), 1024);
}

#[test]
fn a_disk_has_one_writer_or_many_readers() {
    let file = image(1);
    let in_use = |read_only| {
        matches!(Disk::open(file.path(), read_only, ImageFormat::Detect), Err(DiskError::InUse { .. }))
    };
    let writer = Disk::open(file.path(), false, ImageFormat::Detect).unwrap();
    assert!(in_use(false) && in_use(true));
    drop(writer);
    let readers = [
        Disk::open(file.path(), true, ImageFormat::Detect).unwrap(),
        Disk::open(file.path(), true, ImageFormat::Detect).unwrap(),
    ];
    assert!(in_use(false) && !in_use(true));
    drop(readers);
    assert!(!in_use(false));
}

#[test]
fn a_disk_that_cannot_be_written_says_how_to_read_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("disk");
    std::fs::write(&file, [0; 512]).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o444)).unwrap();
    // Root may write all files but those of sysfs, where the mode counts for it too.
    let file = if rustix::process::geteuid().is_root() { Path::new("/sys/kernel/notes") } else { &file };
    let error = Disk::open(file, false, ImageFormat::Detect).unwrap_err();
    assert!(matches!(error, DiskError::NotWritable { .. }), "{error}");
    assert!(error.to_string().contains("add `,readonly`"), "{error}");
}

fn expect_read_only(path: &Path) {
    let error = Disk::open(path, false, ImageFormat::Detect).unwrap_err();
    assert!(matches!(error, DiskError::NotWritable { .. }), "{error}");
    assert!(error.to_string().contains("add `,readonly`"), "{error}");
    assert!(std::error::Error::source(&error).is_some());
    Disk::open(path, true, ImageFormat::Detect).unwrap();
}

#[test]
fn a_read_only_block_device_is_refused_for_writing() {
    let file = image(255);
    let attach = |options: &str| {
        let path = file.path().display();
        let output = std::process::Command::new("sh")
            .args(["-c", &format!("losetup --show -f {options} {path}")])
            .output()
            .unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
    };
    let Some(device) = attach("-r") else {
        eprintln!("skipped: there are no loop devices here");
        return;
    };
    let result = std::panic::catch_unwind(|| expect_read_only(Path::new(&device)));
    runs(&format!("losetup -d {device}"));
    result.unwrap();

    let device = attach("").unwrap();
    let opened = Disk::open(Path::new(&device), false, ImageFormat::Detect);
    runs(&format!("losetup -d {device}"));
    opened.unwrap();
}

#[test]
fn files_that_cannot_be_written_are_refused_for_writing() {
    let Some(directory) = MountedFs::new("tmpfs", "size=64k") else {
        eprintln!("skipped: a read-only file system can't be mounted without root");
        return;
    };
    let path = directory.path().join("disk");
    std::fs::write(&path, [0; 512]).unwrap();
    Disk::open(&path, false, ImageFormat::Detect).unwrap();
    assert!(runs(&format!("mount -o remount,ro {}", directory.path().display())));
    expect_read_only(&path);
    // One that not even root may change.
    let file = image(1);
    for attribute in ["i", "a"] {
        if !runs(&format!("chattr +{attribute} {}", file.path().display())) {
            eprintln!("skipped: this file system has no attribute {attribute}");
            continue;
        }
        let result = std::panic::catch_unwind(|| expect_read_only(file.path()));
        assert!(runs(&format!("chattr -{attribute} {}", file.path().display())));
        result.unwrap();
    }
}

#[test]
fn an_image_of_another_format_is_refused_unless_it_is_said_to_be_raw() {
    let mut file = image(8);
    std::io::Seek::rewind(&mut file).unwrap();
    file.write_all(b"QFI\xfb\0\0\0\x03").unwrap();
    for read_only in [false, true] {
        let error = Disk::open(file.path(), read_only, ImageFormat::Detect).unwrap_err().to_string();
        let command = format!("qemu-img convert -f qcow2 -O raw {}", file.path().display());
        assert!(error.contains(&command) && error.contains("`,format=raw`"), "{error}");
        Disk::open(file.path(), read_only, ImageFormat::Raw).unwrap();
    }
}

#[test]
fn an_id_fits_and_is_fit_for_a_path() {
    assert_eq!(DiskId::new("a-b_c.9").unwrap().bytes()[..8], *b"a-b_c.9\0");
    assert!(DiskId::new("12345678901234567890").is_ok());
    for bad in ["", "123456789012345678901", "a b", "a/b", "é"] {
        assert!(DiskId::new(bad).is_err_and(|error: DiskIdError| error.to_string().contains(bad)));
    }
}

#[test]
fn the_config_space_tells_of_the_disk_and_ends() {
    let file = image(9);
    let rig = Rig::new(With::Direct, file.path(), false);
    let mut space = [0xff; 70];
    rig.block.read_config(0, &mut space);
    assert_eq!(space[..8], 9u64.to_le_bytes());
    assert_eq!(space[8..12], 0x1_0000u32.to_le_bytes());
    assert_eq!(space[12..16], 254u32.to_le_bytes());
    assert_eq!(space[20..24], 512u32.to_le_bytes());
    assert_eq!(space[40..44], 1u32.to_le_bytes());
    assert_eq!((space[33], &space[57..60]), (0, &[0; 3][..]), "unused0 and unused1 are zeros");
    assert_eq!(space[60..], [0xff; 10]);
    for offset in [59, 60, u64::MAX] {
        rig.block.read_config(offset, &mut [0; 8]);
    }
    assert_eq!(rig.block.state().sectors, 9);
}

/// Has the kernel refuse io_uring to the calling thread, as a container's seccomp filter would.
fn forbid_io_uring() {
    let statement = |code: u32, jf, k| libc::sock_filter { code: u16::try_from(code).unwrap(), jt: 0, jf, k };
    let io_uring_setup = u32::try_from(libc::SYS_io_uring_setup).unwrap();
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned();
    let mut filter = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0), // the system call's number
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, io_uring_setup),
        statement(libc::BPF_RET | libc::BPF_K, 0, refuse),
        statement(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
    // SAFETY: it takes no memory of ours.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    // SAFETY: the program and its four statements live until the call returns; the kernel copies them.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    assert_eq!(result, 0);
}

#[test]
fn a_host_that_refuses_io_uring_gets_synchronous_io() {
    let test = || {
        forbid_io_uring();
        let file = image(4);
        let disk = Disk::open(file.path(), false, ImageFormat::Detect).unwrap();
        assert!(matches!(Engine::open(), Engine::Direct(_)));
        let mut block = Block::new(disk, DiskId::default(), RateLimits::default()).unwrap();
        let driver = Driver::new(16);
        block.activate(driver.activation(0)).unwrap();
        let mut rig = Rig { driver, block, requests: 0 };
        assert_eq!(rig.read(1, 512), (0, 513, vec![2; 512]));
    };
    // The filter stays with the thread, and those that it starts.
    std::thread::spawn(test).join().unwrap();
}

/// The limit is that of a process, so that this test runs once more in one of its own.
#[test]
fn a_write_beyond_the_limit_of_a_files_size_fails_and_ends_nothing() {
    use std::os::unix::process::CommandExt;
    const DISK: &str = "MVM_TEST_LIMITED_DISK";
    const NAME: &str = "a_write_beyond_the_limit_of_a_files_size_fails_and_ends_nothing";
    // Sectors 0 to 3 may be written.
    const LIMIT: u64 = 4 * 512;
    let Some(path) = std::env::var_os(DISK) else {
        let file = image(8);
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.arg(NAME).arg("--nocapture").env(DISK, file.path());
        // SAFETY: both calls change the new process alone. mvm ignores the signal as well.
        unsafe {
            child.pre_exec(|| {
                libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
                let limit = libc::rlimit { rlim_cur: LIMIT, rlim_max: LIMIT };
                if libc::setrlimit(libc::RLIMIT_FSIZE, &limit) == 0 {
                    Ok(())
                } else {
                    Err(std::io::Error::last_os_error())
                }
            });
        }
        // Pipes, as the limit holds for files.
        let output = child.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{} {said}", output.status);
        let mut expected = content(image(8).path());
        expected[..512].fill(9);
        assert_eq!(content(file.path()), expected);
        return;
    };
    for with in BOTH {
        let mut rig = Rig::new(with, path.as_ref(), false);
        assert_eq!(rig.write(0, &[9; 512]).0, 0, "{with:?}");
        assert_eq!(rig.write(6, &[9; 512]).0, 1, "{with:?}: IOERR");
        // It goes on.
        assert_eq!(rig.read(6, 512), (0, 513, vec![7; 512]), "{with:?}");
    }
}
