//! What a user can get wrong: each row has an exit code and one line that says what, where, and how to mend it.

#![allow(missing_docs, reason = "tests are named after what they show")]
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a panic is a failed test")]
#![allow(clippy::indexing_slicing, reason = "files are damaged at known places")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rstest::rstest;
use tempfile::TempDir;
use tests::{kernel, mvm, run_mvm, sparse_file};

/// A directory with everything that the rows name, `@` in their arguments.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let path = |name: &str| directory.path().join(name);
        let vmlinux = fs::read(kernel("vmlinux")).unwrap();
        let bzimage = fs::read(kernel("bzImage")).unwrap();
        fs::create_dir(path("directory")).unwrap();
        fs::write(path("empty"), "").unwrap();
        fs::write(path("text"), "#!/bin/sh\necho I am no kernel\n").unwrap();
        fs::write(path("short.elf"), &vmlinux[..vmlinux.len() / 2]).unwrap();
        fs::write(path("header.elf"), &vmlinux[..40]).unwrap();
        fs::write(path("short.bz"), &bzimage[..bzimage.len() / 2]).unwrap();
        fs::write(path("arm.elf"), damaged(&vmlinux, 18, &183_u16.to_le_bytes())).unwrap();
        fs::write(path("object.elf"), damaged(&vmlinux, 16, &1_u16.to_le_bytes())).unwrap();
        // The physical addresses of the first two segments, 24 bytes into their headers.
        let [first, second] = [64 + 24, 64 + 56 + 24];
        let address: [u8; 8] = vmlinux[first..first + 8].try_into().unwrap();
        fs::write(path("overlap.elf"), damaged(&vmlinux, second, &address)).unwrap();
        fs::write(path("low.elf"), damaged(&vmlinux, first, &0x1000_u64.to_le_bytes())).unwrap();
        fs::write(path("high.elf"), damaged(&vmlinux, first, &(1_u64 << 40).to_le_bytes())).unwrap();
        sparse_file(directory.path(), "huge", 1 << 30);
        sparse_file(directory.path(), "disk", 1 << 20);
        fs::write(path("tiny.img"), "x").unwrap();
        fs::write(path("unknown.toml"), "kernel = 'x'\nrootfilesystem = 'y'\n").unwrap();
        fs::write(path("syntax.toml"), "kernel = \n").unwrap();
        Self(directory)
    }

    fn run(&self, arguments: &str) -> Output {
        let directory = self.0.path().to_str().unwrap();
        let vmlinux = kernel("vmlinux");
        let words = arguments.split_whitespace();
        let words =
            words.map(|word| word.replace("VMLINUX", vmlinux.to_str().unwrap()).replace('@', directory));
        run_mvm(["boot".to_owned()].into_iter().chain(words))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

fn damaged(file: &[u8], offset: usize, damage: &[u8]) -> Vec<u8> {
    let mut file = file.to_vec();
    file[offset..offset + damage.len()].copy_from_slice(damage);
    file
}

fn expect(output: &Output, code: i32, parts: &[&str]) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{errors}");
    assert_eq!(errors.trim_end().lines().count(), 1, "one line:\n{errors}");
    for part in parts {
        assert!(errors.contains(part), "no {part:?} in: {errors}");
    }
    assert!(output.stdout.is_empty(), "the guest has run");
}

#[test]
fn each_mistake_has_its_code_and_its_one_line() {
    let files = Files::new();
    let rows: &[(&str, &[&str])] = &[
        ("--kernel @/missing", &["/missing cannot be opened", "No such file"]),
        ("--kernel @/directory", &["/directory is a directory"]),
        ("--kernel @/empty", &["/empty is empty"]),
        ("--kernel @/text", &["/text is no kernel"]),
        ("--kernel /dev/null", &["/dev/null is not a regular file"]),
        ("--kernel @/header.elf", &["header.elf is cut short"]),
        ("--kernel @/short.elf", &["short.elf is cut short"]),
        ("--kernel @/short.bz", &["short.bz is cut short"]),
        ("--kernel @/arm.elf", &["another machine", "aarch64"]),
        ("--kernel @/object.elf", &["not an executable"]),
        ("--kernel @/overlap.elf", &["segments 0 and 1 overlap"]),
        ("--kernel @/low.elf", &["below 1 MiB"]),
        ("--kernel @/high.elf", &["needs memory up to", "--memory"]),
        ("--kernel VMLINUX --memory 16M", &["needs memory up to", "--memory"]),
        ("--kernel VMLINUX --initrd @/missing", &["the initrd", "No such file"]),
        ("--kernel VMLINUX --initrd @/directory", &["the initrd", "is a directory"]),
        ("--kernel VMLINUX --initrd @/empty", &["the initrd", "is empty"]),
        ("--kernel VMLINUX --initrd @/huge --memory 256M", &["the initrd", "--memory"]),
        ("--kernel VMLINUX --cpus 0", &["0 CPUs cannot be had", "1 to 254"]),
        ("--kernel VMLINUX --cpus 255", &["255 CPUs cannot be had", "1 to 254"]),
        ("--kernel VMLINUX --memory 8M", &["8M of memory is too small", "16M"]),
        ("--kernel VMLINUX --memory 512", &["512 bytes of memory is too small"]),
        ("--kernel VMLINUX --memory 67108865", &["not a multiple of 4K"]),
        ("--kernel VMLINUX --rootfs @/missing", &["cannot open disk", "No such file"]),
        ("--kernel VMLINUX --rootfs @/directory", &["is a directory"]),
        ("--kernel VMLINUX --disk @/tiny.img", &["is too small", "truncate"]),
        ("--kernel VMLINUX --disk /dev/null", &["a character device"]),
        ("--kernel VMLINUX --disk @/disk,limit-iops=0", &["a limit of \"0\" would let nothing pass"]),
        ("--kernel VMLINUX --disk @/disk,limit-bandwidth=1M:0", &["would let nothing pass"]),
        ("--kernel VMLINUX --disk @/disk,limit-iops=fast", &["\"fast\" is no rate", "1000:5000"]),
        ("--kernel VMLINUX --disk @/disk,limit-bandwidth=fast", &["\"fast\" is not a size"]),
        ("--kernel VMLINUX --disk @/disk --disk @/disk", &["in use by another VM"]),
        ("--kernel VMLINUX --console @/missing/log", &["cannot open the console's file", "No such file"]),
        (
            "--kernel VMLINUX --net tap=mvm-none",
            &["there is no tap mvm-none", "ip tuntap add mvm-none mode tap"],
        ),
        ("--kernel VMLINUX --net tap=lo", &["lo is no tap", "ip tuntap add"]),
        ("--kernel VMLINUX --net bridge=mvm-none", &["there is no bridge mvm-none", "ip link add mvm-none"]),
        ("--config @/missing.toml", &["cannot read the configuration", "No such file"]),
        ("--config @/unknown.toml", &["unknown.toml, line 2", "rootfilesystem", "rootfs"]),
        ("--config @/syntax.toml", &["syntax.toml, line 1"]),
        ("--config @/directory", &["cannot read the configuration", "directory"]),
        ("--cpus 1", &["no kernel", "--kernel FILE"]),
    ];
    for (arguments, parts) in rows {
        eprintln!("mvm boot {arguments}");
        expect(&files.run(arguments), 2, parts);
    }
}

/// What clap finds has usage behind it, so only the first line counts.
#[rstest]
#[case("boot --kernel x --cpus two", "invalid value 'two' for '--cpus <N>'")]
#[case("boot --kernel x --memory lots", "\"lots\" is not a size")]
#[case("boot --kernel x --memory 99999999999999999999G", "more memory than any machine has")]
#[case("boot --kernel x --disk a.img,ro", "\"ro\" is no option of a disk")]
#[case("boot --kernel x --disk ,readonly", "a disk needs a path")]
#[case("boot --kernel x --disk a,id=much-too-long-for-a-disk", "1 to 20")]
#[case("boot --kernel x --net tap0", "\"tap0\" is no network")]
#[case("boot --kernel x --net tap=tap0,script=no", "\"script=no\" is no option of a network")]
#[case("boot --kernel x --net tap=a-tap-with-a-long-name", "1 to 15 bytes")]
#[case("boot --kernel x --net tap=t,queues=0", "queues=0 cannot be had: give 1 to 16")]
#[case("boot --kernel x --net tap=t,queues=17", "queues=17 cannot be had: give 1 to 16")]
#[case("boot --kernel x --net user,queues=2", "user has one queue")]
#[case("boot --kernel x --net tap=t,mtu=1", "mtu=1 cannot be had: give 68 to 65521")]
#[case("boot --kernel x --net tap=t,mac=52:54:00", "write six bytes")]
#[case("boot --kernel x --net tap=t,mac=01:00:5e:00:00:01", "an even first byte")]
#[case("boot --kernel", "a value is required for '--kernel <FILE>'")]
#[case("boot --kernle x", "unexpected argument '--kernle'")]
#[case("boost", "unrecognized subcommand 'boost'")]
#[case("--log-level loud boot", "invalid value 'loud'")]
fn wrong_usage_is_code_2(#[case] arguments: &str, #[case] expected: &str) {
    let output = run_mvm(arguments.split_whitespace());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.lines().next().unwrap().contains(expected), "{errors}");
}

#[test]
fn arguments_that_the_kernel_would_cut_off_are_refused() {
    let output = run_mvm([
        "boot".as_ref(),
        "--kernel".as_ref(),
        kernel("vmlinux").as_os_str(),
        "--append".as_ref(),
        "x".repeat(3000).as_ref(),
    ]);
    expect(&output, 2, &["arguments have", "takes 2047", "--append"]);
}

#[test]
fn too_many_disks_are_refused_by_number() {
    let files = Files::new();
    let disks: String = (0..18)
        .map(|index| {
            let disk = sparse_file(files.path(), &format!("disk{index}"), 4096);
            format!(" --disk {}", disk.display())
        })
        .collect();
    expect(
        &files.run(&format!("--kernel VMLINUX{disks}")),
        2,
        &["19 virtio devices cannot be had", "at most 18"],
    );
}

/// The files stay as they were whatever was wrong.
#[test]
fn a_mistake_leaves_the_disk_alone() {
    let files = Files::new();
    let disk = files.path().join("disk");
    fs::write(&disk, vec![7; 1 << 20]).unwrap();
    files.run("--kernel @/text --disk @/disk");
    assert!(fs::read(&disk).unwrap() == vec![7; 1 << 20]);
}

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
fn without_permission_for_kvm_the_way_to_mend_it_is_said() {
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
    expect(&files.run("--kernel VMLINUX --net bridge=lo"), 2, &["lo is no bridge", "type bridge"]);
    let (_directory, kernel, _) = readable_files();
    let run = |net: &str| as_nobody(&["boot", "--kernel", kernel.to_str().unwrap(), "--net", net]);
    if let Some(output) = run("tap=mvmsingle") {
        expect(&output, 3, &["no permission for tap mvmsingle", "mode tap user"]);
    }
    if let Some(output) = run("bridge=lo") {
        expect(&output, 3, &["no permission to make a tap", "tap=NAME"]);
    }
}

#[test]
fn without_kvm_the_way_to_mend_it_is_said() {
    // A mount namespace of its own, in which /dev is empty.
    let script = "mount -t tmpfs none /dev && exec \"$0\" \"$@\"";
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .arg(mvm())
        .args(["boot", "--kernel"])
        .arg(kernel("vmlinux"))
        .output()
        .unwrap();
    if String::from_utf8_lossy(&output.stderr).starts_with("unshare:") {
        eprintln!("skipped: a mount namespace needs root");
        return;
    }
    expect(&output, 3, &["there is no /dev/kvm", "modprobe", "mvm doctor"]);
}

#[test]
fn more_memory_than_there_is_room_for_is_the_hosts_fault() {
    let files = Files::new();
    expect(&files.run("--kernel VMLINUX --memory 16000T"), 3, &["cannot reserve 16000T", "smaller --memory"]);
}

#[test]
fn output_that_cannot_be_written_is_said_and_a_reader_that_has_gone_is_not() {
    for (command, expected) in [("doctor", 3), ("man", 3), ("completions bash", 3)] {
        let script = format!("\"$0\" {command} >/dev/full");
        let output = Command::new("sh").args(["-c", &script]).arg(mvm()).output().unwrap();
        expect(&output, expected, &["cannot write to standard output", "No space left"]);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let status = Command::new(mvm()).args(command.split(' ')).stdout(writer).status().unwrap();
        assert_eq!(status.code(), Some(0), "{command}");
    }
}

#[test]
fn help_pages_and_completions_name_every_flag() {
    let text = |arguments: &[&str]| {
        let output = run_mvm(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap().replace('\\', "")
    };
    let help = text(&["boot", "--help"]);
    let flags: Vec<_> =
        help.split_whitespace().filter(|word| word.starts_with("--") && word.len() > 2).collect();
    assert!(flags.len() > 12 && help.contains("Examples:"), "{help}");
    for arguments in
        [&["man", "boot"][..], &["completions", "bash"], &["completions", "zsh"], &["completions", "fish"]]
    {
        let page = text(arguments);
        for flag in [
            "kernel", "initrd", "rootfs", "disk", "cpus", "memory", "append", "cmdline", "console", "net",
            "timing",
        ] {
            assert!(page.contains(flag), "no {flag} in {arguments:?}");
        }
    }
    assert_eq!(run_mvm(["man", "boast"]).status.code(), Some(2));
}
