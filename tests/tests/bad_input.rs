//! Mistakes in files, devices and permissions: each row has an exit code and one line that says what is wrong, where,
//! and how to fix it. Mistakes on the command line are tested in cli/tests/usage.rs.

#![allow(missing_docs, reason = "tests are named after what they show")]
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a panic is a failed test")]
#![allow(clippy::indexing_slicing, reason = "files are damaged at known places")]

#[path = "bad_input/permissions.rs"]
mod permissions;

use std::fs;
use std::path::Path;
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
        sparse_file(directory.path(), "pmem", 2 << 20);
        sparse_file(directory.path(), "odd", (2 << 20) + 4096);
        fs::write(path("tiny.img"), "x").unwrap();
        for (name, magic) in [("web.qcow2", &b"QFI\xfb\0\0\0\x03"[..]), ("web.img.gz", b"\x1f\x8b\x08")] {
            fs::write(path(name), damaged(&[0; 4096], 0, magic)).unwrap();
        }
        Self(directory)
    }

    fn run(&self, arguments: &str) -> Output {
        let directory = self.0.path().to_str().unwrap();
        let vmlinux = kernel("vmlinux");
        let words = arguments.split_whitespace();
        let words = words.map(|word| {
            word.replace("LONG", &"x".repeat(120))
                .replace("VMLINUX", vmlinux.to_str().unwrap())
                .replace('@', directory)
        });
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
    let _live = std::os::unix::net::UnixListener::bind(files.path().join("live")).unwrap();
    let rows: &[(&str, &[&str])] = &[
        ("--kernel @/missing", &["/missing cannot be opened", "No such file"]),
        ("--kernel @/directory", &["/directory is a directory"]),
        ("--kernel @/empty", &["/empty is empty"]),
        ("--kernel @/text", &["/text is not a kernel"]),
        ("--kernel /dev/null", &["/dev/null is not a regular file"]),
        ("--kernel @/header.elf", &["header.elf is cut short"]),
        ("--kernel @/short.elf", &["short.elf is cut short"]),
        ("--kernel @/short.bz", &["short.bz is cut short"]),
        ("--kernel @/arm.elf", &["another machine", "aarch64"]),
        ("--kernel @/object.elf", &["not an executable"]),
        ("--kernel @/overlap.elf", &["segments 0 and 1 overlap"]),
        ("--kernel @/low.elf", &["below 1 MiB"]),
        ("--kernel @/high.elf", &["of memory, the guest has", "--memory"]),
        ("--kernel VMLINUX --memory 16M", &["of memory, the guest has", "--memory"]),
        ("--kernel VMLINUX --initrd @/missing", &["the initrd", "No such file"]),
        ("--kernel VMLINUX --initrd @/directory", &["the initrd", "is a directory"]),
        ("--kernel VMLINUX --initrd @/empty", &["the initrd", "is empty"]),
        ("--kernel VMLINUX --initrd @/huge --memory 256M", &["the initrd", "has 1024.0 MiB", "--memory"]),
        ("--kernel VMLINUX --rootfs @/missing", &["cannot open disk", "No such file"]),
        ("--kernel VMLINUX --rootfs @/directory", &["is a directory"]),
        ("--kernel VMLINUX --disk @/tiny.img", &["is too small", "truncate"]),
        ("--kernel VMLINUX --disk /dev/null", &["a character device"]),
        (
            "--kernel VMLINUX --rootfs @/web.qcow2",
            &["/web.qcow2", "QCOW2", "qemu-img convert -f qcow2 -O raw", "format=raw"],
        ),
        ("--kernel VMLINUX --disk @/web.img.gz", &["/web.img.gz", "gzip-compressed", "gzip -dc", "web.img"]),
        ("--kernel VMLINUX --pmem @/web.qcow2", &["/web.qcow2", "QCOW2", "qemu-img convert"]),
        ("--kernel VMLINUX --disk @/disk --disk @/directory/../disk", &["in use by another VM"]),
        ("--kernel VMLINUX --vsock @/missing/v", &["cannot make the vsock socket", "No such file"]),
        (
            "--kernel VMLINUX --vsock @/text",
            &["cannot make the vsock socket", "/text: a file that is not a socket is in the way"],
        ),
        ("--kernel VMLINUX --vsock @/directory", &["/directory: a file that is not a socket is in the way"]),
        (
            "--kernel VMLINUX --vsock @/live",
            &["cannot make the vsock socket", "/live", "another process listens there"],
        ),
        ("--kernel VMLINUX --vsock /tmp/LONG", &["the limit is 96", "shorter"]),
        ("--kernel @/missing --vsock @/v", &["/missing cannot be opened"]),
        ("--kernel VMLINUX --pmem @/missing", &["cannot open disk", "No such file"]),
        ("--kernel VMLINUX --pmem @/directory", &["is a directory"]),
        ("--kernel VMLINUX --pmem @/empty", &["is too small", "truncate"]),
        ("--kernel VMLINUX --pmem @/odd", &["not a multiple of 2 MiB", "truncate -s %2M"]),
        ("--kernel VMLINUX --console @/missing/log", &["cannot open the console's file", "No such file"]),
        (
            "--kernel VMLINUX --gdb @/text",
            &["cannot make the GDB socket", "/text: a file that is not a socket is in the way"],
        ),
        ("--kernel VMLINUX --gdb @/missing/gdb", &["cannot make the GDB socket", "No such file"]),
        ("--kernel VMLINUX --gdb 203.0.113.1:1", &["cannot listen for GDB on 203.0.113.1:1", "another port"]),
        ("--kernel VMLINUX --share @/missing:/work", &["cannot share", "/missing", "No such file"]),
        ("--kernel VMLINUX --share @/text:/work", &["cannot share", "/text: it is not a folder"]),
        ("--kernel VMLINUX --share @:/work --share @/directory:/work", &["two shares have the PATH /work"]),
        (
            "--kernel VMLINUX --share @:x --vhost-user fs=@/missing,tag=x",
            &["two shares have the PATH x", "give each its own"],
        ),
        (
            "--kernel VMLINUX --vhost-user fs=@/missing,tag=x",
            &["vhost-user socket", "/missing", "No such file"],
        ),
        ("--kernel VMLINUX --vhost-user fs=@/text,tag=x", &["vhost-user socket", "/text", "refused"]),
        (
            "--kernel VMLINUX --net tap=mvm-none",
            &["there is no tap mvm-none", "ip tuntap add mvm-none mode tap"],
        ),
        ("--kernel VMLINUX --net tap=lo", &["lo is not a tap", "ip tuntap add"]),
        ("--kernel VMLINUX --net bridge=mvm-none", &["there is no bridge mvm-none", "ip link add mvm-none"]),
        ("--config @/directory", &["cannot read the configuration", "directory"]),
    ];
    for (arguments, parts) in rows {
        eprintln!("mvm boot {arguments}");
        expect(&files.run(arguments), 2, parts);
    }
    assert!(!files.path().join("v").exists(), "a socket was left behind");
}

#[test]
fn a_block_device_that_takes_no_writes_is_refused_with_the_option_that_helps() {
    let files = Files::new();
    let disk = files.path().join("disk");
    let losetup = |arguments: &[&str]| Command::new("losetup").args(arguments).output();
    let device = match losetup(&["--read-only", "--find", "--show", disk.to_str().unwrap()]) {
        Ok(output) if output.status.success() => String::from_utf8(output.stdout).unwrap(),
        refused => return eprintln!("skipped: no loop device: {refused:?}"),
    };
    let device = device.trim();
    let refused = files.run(&format!("--kernel VMLINUX --disk {device}"));
    assert!(losetup(&["--detach", device]).unwrap().status.success());
    expect(&refused, 2, &["cannot write to disk", device, "add `,readonly`"]);
}

#[test]
fn a_port_in_use_and_a_path_too_long_are_no_places_for_gdb() {
    let files = Files::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let output = files.run(&format!("--kernel VMLINUX --gdb {}", address.port()));
    expect(&output, 2, &[&format!("cannot listen for GDB on {address}"), "another port", "in use"]);
    let output = files.run(&format!("--kernel VMLINUX --gdb @/{}", "x".repeat(108)));
    expect(&output, 2, &["the limit is 107"]);
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
        &["too many virtio devices: 19", "at most 18"],
    );
}

/// Runs mvm with a place of its own for the directories of VMs.
fn with_runtime_dir(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(mvm()).args(arguments).env("XDG_RUNTIME_DIR", directory).output().unwrap()
}

#[test]
fn without_vms_lists_are_empty() {
    let directory = TempDir::new().unwrap();
    for (arguments, expected) in [(["ps", "--quiet"], ""), (["ps", "--json"], "[]\n")] {
        let output = with_runtime_dir(directory.path(), &arguments);
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), expected.as_bytes()));
    }
}

/// The process ID in a VM's directory is another process's by now, which is not signalled.
#[test]
fn a_process_that_only_has_the_number_is_not_signalled() {
    use rustix::fs::{FlockOperation, flock};
    use std::os::unix::fs::PermissionsExt;
    let directory = TempDir::new().unwrap();
    let base = directory.path().join("mvm");
    let vm = base.join("0123456789ab");
    fs::create_dir_all(&vm).unwrap();
    fs::set_permissions(&base, fs::Permissions::from_mode(0o700)).unwrap();
    let mut stranger = Command::new("sleep").arg("1000").stdout(std::process::Stdio::null()).spawn().unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let record = format!(
        r#"{{"id":"0123456789ab","name":null,"process":{{"pid":{},"start_time":1,"boot_id":"{}"}},"created":0,
           "config":{{"cpus":1,"memory":1,"kernel":"\u001b[31m","rootfs":null}}}}"#,
        stranger.id(),
        boot.trim()
    );
    fs::write(vm.join("vm.json"), record).unwrap();
    // Its lock says that it lives.
    let lock = fs::File::open(&vm).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let listed = with_runtime_dir(directory.path(), &["ps"]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(
        listed.contains("0123456789ab   vm     -       Up ") && listed.contains("(not responding)"),
        "{listed}"
    );
    assert!(!listed.contains('\u{1b}'), "the terminal is given a command");
    for arguments in
        [&["kill", "0123456789ab"][..], &["kill", "--signal", "TERM", "01"], &["stop", "--time", "0", "01"]]
    {
        expect(&with_runtime_dir(directory.path(), arguments), 1, &["01", "has ended"]);
    }
    assert!(stranger.try_wait().unwrap().is_none(), "it was signalled");
    stranger.kill().and_then(|()| stranger.wait()).unwrap();
}

#[test]
fn a_place_for_the_directory_that_cannot_be_used_is_the_hosts_fault() {
    let directory = TempDir::new().unwrap();
    let boot = |directory: &Path| {
        with_runtime_dir(directory, &["boot", "--kernel", kernel("vmlinux").to_str().unwrap()])
    };
    let long = directory.path().join("x".repeat(100));
    fs::create_dir(&long).unwrap();
    expect(&boot(&long), 3, &["too long for a socket's path", "--runtime-dir"]);
    fs::write(directory.path().join("mvm"), "").unwrap();
    expect(&boot(directory.path()), 3, &["cannot ", "/mvm", "ot a directory"]);
    fs::remove_file(directory.path().join("mvm")).unwrap();
    std::os::unix::fs::symlink("/etc", directory.path().join("mvm")).unwrap();
    expect(&boot(directory.path()), 3, &["cannot ", "/mvm", "ot a directory"]);
}

/// A file system that may not be written to, and one that has no room.
#[rstest]
#[case("mount -t tmpfs -o ro none \"$XDG_RUNTIME_DIR\"", "Read-only file system")]
#[case("mount -t tmpfs -o nr_inodes=3 none \"$XDG_RUNTIME_DIR\"", "No space left")]
fn a_directory_that_cannot_be_made_is_the_hosts_fault(#[case] mount: &str, #[case] cause: &str) {
    let directory = TempDir::new().unwrap();
    let script = format!("{mount} && exec \"$0\" \"$@\"");
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .arg(mvm())
        .args(["boot", "--kernel"])
        .arg(kernel("vmlinux"))
        .env("XDG_RUNTIME_DIR", directory.path())
        .output()
        .unwrap();
    if String::from_utf8_lossy(&output.stderr).starts_with("unshare:") {
        eprintln!("skipped: a mount namespace needs root");
        return;
    }
    expect(&output, 3, &["cannot ", "/mvm", cause]);
}

/// virtiofsd is another program, which may not be there, or not be what it is called.
#[rstest]
#[case("/missing", &["cannot start /missing to share /work", "No such file"])]
#[case("/bin/false", &["virtiofsd failed to share /work", "exit status: 1"])]
#[case("/bin/ls", &["virtiofsd failed to share /work", "unrecognized option"])]
fn a_virtiofsd_that_does_not_work_is_reported(#[case] program: &str, #[case] parts: &[&str]) {
    let files = Files::new();
    let share = format!("{}:/work", files.path().display());
    let mut command = Command::new(mvm());
    command.args(["boot", "--share", &share, "--kernel"]).arg(kernel("vmlinux"));
    expect(&command.env("MVM_VIRTIOFSD", program).output().unwrap(), 3, parts);
}

#[test]
fn without_virtiofsd_the_package_is_named() {
    let usual = ["/usr/libexec/virtiofsd", "/usr/lib/virtiofsd"];
    if usual.iter().any(|path| Path::new(path).exists()) {
        eprintln!("skipped: this host has a virtiofsd at its usual place");
        return;
    }
    let files = Files::new();
    let share = format!("{}:/work", files.path().display());
    let mut command = Command::new(mvm());
    command.args(["boot", "--share", &share, "--kernel"]).arg(kernel("vmlinux"));
    let output = command.env_remove("MVM_VIRTIOFSD").env("PATH", "/missing").output().unwrap();
    expect(
        &output,
        3,
        &[
            "virtiofsd is not installed, which shared folders need (-v, --share): ",
            "virtiofsd",
            "MVM_VIRTIOFSD",
        ],
    );
}

#[test]
fn what_prevents_a_user_network_is_reported() {
    let files = Files::new();
    expect(&files.run("--kernel VMLINUX --net tap=t -p 8080:80"), 2, &["add --net user"]);
    let twice = "--kernel VMLINUX -p 127.0.0.1:8080:80 -p 127.0.0.2:8070-8090:70-90";
    expect(&files.run(twice), 2, &["port 8080/tcp of the host is published twice"]);
    let away = "--kernel VMLINUX -p 203.0.113.77:8080:80";
    expect(&files.run(away), 2, &["203.0.113.77 is not an address of this host"]);
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = holder.local_addr().unwrap().port();
    let said = format!("port {port}/tcp of the host is in use");
    expect(&files.run(&format!("--kernel VMLINUX -p {port}:80")), 2, &[&said]);
    let run = |variable: &str, value: &str| {
        let mut command = Command::new(mvm());
        command.args(["boot", "--net", "user", "--kernel"]).arg(kernel("vmlinux"));
        command.env_remove("MVM_PASST").env(variable, value).output().unwrap()
    };
    expect(&run("PATH", "/missing"), 3, &["passt is not installed", "apt install passt", "MVM_PASST"]);
    expect(&run("MVM_PASST", "/missing"), 3, &["cannot start /missing", "No such file"]);
    expect(&run("MVM_PASST", "/bin/false"), 3, &["passt failed to start", "exit status: 1"]);
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

#[test]
fn without_kvm_the_message_says_how_to_fix_it() {
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
    expect(
        &files.run("--kernel VMLINUX --memory 16000T --log-level error"),
        3,
        &["cannot reserve 16000T", "smaller --memory"],
    );
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
        // The doctor's depends on the host.
        assert_eq!(status.code(), run_mvm(command.split(' ')).status.code(), "{command}");
    }
}
