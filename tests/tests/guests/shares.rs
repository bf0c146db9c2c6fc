//! Shared folders: a guest works in a folder of the host as in its own, and can do no more there than it may.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tempfile::TempDir;
use tests::{Boot, Outcome};

/// Makes the host's own root file system, which is the share /host, a place to run the host's programs in: with the
/// share /work at /mnt.
const ENTER_HOST: &str = "for fs in proc sysfs tmpfs; do
        mount -t $fs $fs /host/$(echo $fs | sed 's/sysfs/sys/; s/tmpfs/tmp/'); done
    mount --bind /dev /host/dev; mount --bind /work /host/mnt
    host() { chroot /host /usr/bin/env -i PATH=/usr/bin:/bin HOME=/tmp sh -c \"cd /mnt; $1\"; }";

fn boot_with(folder: &Path, options: &str) -> Boot {
    Boot::new().flag("--share", format!("{}:/work{options}", folder.display()))
}

fn run_in_host(folder: &Path, script: &str) -> Outcome {
    let boot = boot_with(folder, "").flag("--share", "/:/host,readonly").flag("--memory", "1G");
    boot.script(&format!("{ENTER_HOST}\n{script}")).run().expect_code(0)
}

#[test]
fn what_the_guest_does_is_done_on_the_host() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("greeting"), "hello").unwrap();
    fs::write(path("gone"), "").unwrap();
    symlink("greeting", path("link")).unwrap();
    let script = "cd /work
        echo read=$(cat link); echo link=$(readlink link)
        umask 0; echo from the guest >made; chmod 640 made; chown 1234:56 made
        mkdir -m 1777 d; ln -s ../made d/s; ln made hard; mv made moved; rm gone
        dd if=/dev/zero of=sparse bs=1 count=1 seek=10485759 2>/dev/null
        echo x >>moved; mkfifo fifo; touch -d '2001-02-03 04:05:06' old
        # Again, with a driver that starts the device once more.
        cd /; umount /work; cd /sys/bus/virtio/drivers/virtiofs
        for device in virtio*; do echo $device >unbind; echo $device >bind; done
        mount -t virtiofs /work /work && echo again=$(cat /work/greeting)";
    let outcome = boot_with(folder.path(), "").script(script).run().expect_code(0);
    assert_eq!((outcome.value("read"), outcome.value("link")), ("hello", "greeting"));
    assert_eq!(outcome.value("again"), "hello");
    assert_eq!(fs::read_to_string(path("moved")).unwrap(), "from the guest\nx\n");
    let moved = fs::metadata(path("moved")).unwrap();
    assert_eq!((moved.mode() & 0o7777, moved.uid(), moved.gid(), moved.nlink()), (0o640, 1234, 56, 2));
    assert_eq!(fs::metadata(path("hard")).unwrap().ino(), moved.ino());
    assert_eq!(fs::metadata(path("d")).unwrap().mode(), 0o41777);
    assert_eq!(fs::read_link(path("d/s")).unwrap(), Path::new("../made"));
    assert!(!path("gone").exists() && !path("made").exists());
    let sparse = fs::metadata(path("sparse")).unwrap();
    assert_eq!(sparse.len(), 10 << 20);
    assert_eq!(fs::metadata(path("fifo")).unwrap().mode() & libc_type_mask(), 0o010_000);
    assert_eq!(fs::metadata(path("old")).unwrap().mtime(), 981_173_106);
    assert!(outcome.errors.is_empty(), "{outcome}");
}

/// The bits of a mode that say what kind of file it is.
fn libc_type_mask() -> u32 {
    0o170_000
}

#[test]
fn a_read_only_share_refuses_whatever_the_guest_tries() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("file"), "as it was").unwrap();
    let script = "cd /work
        for try in 'echo x >file' 'echo x >new' 'rm file' 'mv file other' 'chmod 0 file' 'mkdir d' 'ln file hard' \\
            'truncate -s 0 file' 'touch file' 'mount -o remount,rw /work && echo x >file'; do
            sh -c \"$try\" 2>/dev/null && echo \"done: $try\"
        done
        echo read=$(cat file | tr ' ' _)";
    let outcome = boot_with(folder.path(), ",readonly").script(script).run().expect_code(0);
    assert!(!outcome.output.contains("done:"), "{outcome}");
    assert_eq!(outcome.value("read"), "as_it_was");
    let names: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["file"]);
    assert_eq!(fs::read_to_string(folder.path().join("file")).unwrap(), "as it was");
}

/// What a shell can't do: extended attributes, mappings, and locks of both kinds.
const PROGRAM: &str = r#"
import fcntl, mmap, os
os.setxattr("data", "user.colour", b"red")
assert os.getxattr("data", "user.colour") == b"red" and os.getxattr("data", "user.host") == b"set"
with open("data", "r+b") as file, mmap.mmap(file.fileno(), 1 << 20) as view:
    assert view[:4] == b"host" and view[-4:] == b"tail"
    view[4096:4101] = b"guest"
    view.flush()
    assert os.pread(file.fileno(), 5, 4096) == b"guest"
    os.pwrite(file.fileno(), b"plain", 8192)
    assert view[8192:8197] == b"plain"

def held(lock, unlock):
    """Whether another process is kept out as long as this one has the lock, and no longer."""
    with open("lock", "w") as file:
        lock(file)
        def other():
            child = os.fork()
            if child == 0:
                try:
                    with open("lock", "w") as theirs:
                        lock(theirs)
                    os._exit(0)
                except BlockingIOError:
                    os._exit(1)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        kept_out = other()
        unlock(file)
        return (kept_out, other()) == (1, 0)

exclusive = fcntl.LOCK_EX | fcntl.LOCK_NB
print("flock=%s" % held(lambda f: fcntl.flock(f, exclusive), lambda f: fcntl.flock(f, fcntl.LOCK_UN)))
print("fcntl=%s" % held(lambda f: fcntl.lockf(f, exclusive), lambda f: fcntl.lockf(f, fcntl.LOCK_UN)))
"#;

#[test]
fn attributes_mappings_and_locks_do_what_they_do_on_a_file_system() {
    // A tmpfs, as the lab's /tmp is, has extended attributes from Linux 6.6 on only.
    let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let data = folder.path().join("data");
    let mut content = vec![0; 1 << 20];
    content[..4].copy_from_slice(b"host");
    content[(1 << 20) - 4..].copy_from_slice(b"tail");
    fs::write(&data, &content).unwrap();
    rustix::fs::setxattr(&data, "user.host", b"set", rustix::fs::XattrFlags::empty()).unwrap();
    fs::write(folder.path().join("program"), PROGRAM).unwrap();
    let outcome = run_in_host(folder.path(), "host 'python3 program' && echo passed").expect_line("passed");
    assert_eq!((outcome.value("flock"), outcome.value("fcntl")), ("True", "True"), "{outcome}");
    content[4096..4101].copy_from_slice(b"guest");
    content[8192..8197].copy_from_slice(b"plain");
    assert!(fs::read(&data).unwrap() == content, "what was written to the mapping is not in the file");
    let mut colour = [0; 8];
    let length = rustix::fs::getxattr(&data, "user.colour", &mut colour[..]).unwrap();
    assert_eq!(&colour[..length], b"red");
}

/// A program of a source and a header that is made, with a makefile, in a git repository. To compile is slow in the
/// lab, so there is one compilation.
fn repository(at: &Path) {
    fs::create_dir(at).unwrap();
    let main =
        "#include \"answer.h\"\nint puts(const char *);\nint main(void) { return puts(ANSWER) < 0; }\n";
    fs::write(at.join("main.c"), main).unwrap();
    let makefile = "program: main.o\n\tcc -o $@ $^\n%.o: %.c answer.h\n\tcc -c -o $@ $<\n\
        answer.h:\n\techo '#define ANSWER \"built in the guest\"' >$@\n";
    fs::write(at.join("Makefile"), makefile).unwrap();
    let git = |arguments: &[&str]| {
        let identity =
            ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "init.defaultBranch=main"];
        let status = Command::new("git").args(identity).args(arguments).current_dir(at).status().unwrap();
        assert!(status.success(), "git {arguments:?}");
    };
    git(&["init", "-q"]);
    git(&["add", "."]);
    git(&["commit", "-q", "-m", "first"]);
}

#[test]
fn a_repository_is_cloned_and_built_in_a_share() {
    let folder = TempDir::new().unwrap();
    repository(&folder.path().join("origin"));
    let script =
        "host 'git config --global --add safe.directory /mnt/origin/.git && git clone -q origin clone &&
            make -s -C clone && git -C clone status --porcelain' && echo cloned
        host clone/program";
    run_in_host(folder.path(), script).expect_line("cloned").expect_line("?? program");
    let clone = folder.path().join("clone");
    let head = |at: &Path| fs::read_to_string(at.join(".git/refs/heads/main")).unwrap();
    assert_eq!(head(&clone), head(&folder.path().join("origin")));
    // What the guest has built runs on the host, too.
    let output = Command::new(clone.join("program")).output().unwrap();
    assert_eq!(output.stdout, b"built in the guest\n");
}

#[test]
fn a_folder_of_many_files_is_read_and_removed() {
    const COUNT: usize = 200;
    let folder = TempDir::new().unwrap();
    let many = folder.path().join("many");
    fs::create_dir(&many).unwrap();
    for index in 0..COUNT {
        fs::write(many.join(format!("file-with-a-name-of-some-length-{index:05}")), format!("{index}\n"))
            .unwrap();
    }
    let script = "cd /work; echo count=$(ls many | wc -l)
        echo sum=$(cat many/* | awk '{ sum += $1 } END { print sum }')
        # Not `rm -r`: a tmpfs on the host loses its place when a folder shrinks while it is read.
        (cd many && ls | xargs rm) && rmdir many; echo left=$(ls | wc -l)";
    let outcome = boot_with(folder.path(), "").script(script).run().expect_code(0);
    assert_eq!(outcome.number("count"), COUNT as u64);
    assert_eq!(outcome.number("sum"), (COUNT * (COUNT - 1) / 2) as u64);
    assert_eq!(outcome.number("left"), 0);
    assert!(!many.exists());
}

/// The processes that mvm started and what those started, itself not included.
fn descendants(of: Pid) -> Vec<Pid> {
    let children = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?));
    children.flat_map(|child| [vec![child], descendants(child)].concat()).collect()
}

fn wait_until_gone(pids: &[Pid]) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let lives = |pid: &&Pid| Path::new(&format!("/proc/{pid}")).exists();
    while let Some(pid) = pids.iter().find(lives) {
        assert!(Instant::now() < deadline, "process {pid} is left");
        std::thread::yield_now();
    }
}

#[test]
fn when_virtiofsd_is_killed_requests_fail_and_the_guest_lives() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("file"), vec![7; 1 << 20]).unwrap();
    // One reader is always at work, and files are looked up that the guest has not seen.
    let script =
        "(while dd if=/work/file of=/dev/null bs=64k 2>/dev/null; do echo 3 >/proc/sys/vm/drop_caches; done
            echo reader=ended) &
        echo ready; read line
        cat /work/other; mkdir /work/new; wait
        umount /work && mount -t virtiofs /work /work; cat /work/file >/dev/null 2>&1 && echo read || echo refused
        echo lives";
    let mut guest = boot_with(folder.path(), "").script(script).start();
    guest.wait_for("ready");
    let serving = descendants(guest.vm_pid());
    assert_eq!(serving.len(), 2, "virtiofsd and its child in a namespace");
    kill_process(serving[1], Signal::KILL).unwrap();
    guest.type_text("go on\n");
    let outcome =
        guest.finish().expect_code(0).expect_line("reader=ended").expect_line("refused").expect_line("lives");
    let refusals = outcome.output.matches("Transport endpoint is not connected").count();
    assert_eq!(refusals, 2, "{outcome}");
    for said in ["the back end of the device is lost", "virtiofsd has ended"] {
        assert_eq!(outcome.errors.matches(said).count(), 1, "{outcome}");
    }
}

#[test]
fn virtiofsd_ends_with_mvm_however_that_ends() {
    let folder = TempDir::new().unwrap();
    for signals in [&[Signal::KILL][..], &[Signal::TERM, Signal::INT]] {
        let mut guest = boot_with(folder.path(), "").start();
        guest.wait_for("init: started");
        let serving = descendants(guest.vm_pid());
        assert!(!serving.is_empty());
        signals.iter().for_each(|signal| guest.signal(*signal));
        drop(guest.finish());
        wait_until_gone(&serving);
    }
}

#[test]
fn signals_to_all_processes_leave_the_guest_its_files() {
    use std::io::{Read, Write};
    use std::os::unix::process::CommandExt;
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("file"), "still here").unwrap();
    let script = "echo ready; read line; echo 3 >/proc/sys/vm/drop_caches; cat /work/file; touch /work/last";
    // The guest does not react to its power button.
    let boot = boot_with(folder.path(), "").flag("--stop-timeout", "1h");
    let (mut command, _directory) = boot.script(script).command();
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut mvm = command.spawn().unwrap();
    let mut seen = Vec::new();
    let mut output = mvm.stdout.take().unwrap();
    while !String::from_utf8_lossy(&seen).contains("ready") {
        let mut byte = [0];
        output.read_exact(&mut byte).unwrap();
        seen.extend(byte);
    }
    kill_process_group(Pid::from_child(&mvm), Signal::INT).unwrap();
    // systemd sends them to all processes of a service.
    let serving = descendants(Pid::from_child(&mvm));
    assert_eq!(serving.len(), 3, "the process of the VM, virtiofsd and its child in a namespace");
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        serving.iter().for_each(|pid| kill_process(*pid, signal).unwrap());
    }
    mvm.stdin.as_mut().unwrap().write_all(b"go on\n").unwrap();
    output.read_to_end(&mut seen).unwrap();
    assert_eq!(mvm.wait().unwrap().code(), Some(0));
    assert!(String::from_utf8_lossy(&seen).contains("still here"));
    assert!(folder.path().join("last").exists());
    wait_until_gone(&serving);
}

#[test]
fn a_running_back_end_is_used_and_a_config_file_can_say_so() {
    let folder = TempDir::new().unwrap();
    fs::create_dir(folder.path().join("shared")).unwrap();
    fs::write(folder.path().join("shared/file"), "served").unwrap();
    let socket = folder.path().join("socket");
    let mut serving = Command::new(virtiofsd())
        .arg("--shared-dir")
        .arg(folder.path().join("shared"))
        .arg("--socket-path")
        .arg(&socket)
        .args(["--sandbox=none", "--log-level=error"])
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !socket.exists() {
        assert!(
            Instant::now() < deadline && serving.try_wait().unwrap().is_none(),
            "virtiofsd makes no socket"
        );
        std::thread::yield_now();
    }
    let config = format!(
        "kernel = '{}'\nshare = ['shared:tagged,readonly']\nvhost-user = ['fs=socket,tag=/served']\n",
        tests::kernel("vmlinux").display()
    );
    let file = folder.path().join("vm.toml");
    fs::write(&file, config).unwrap();
    let script = "echo here=$(cat /served/file); mount -t virtiofs tagged /mnt && echo there=$(cat /mnt/file)
        echo places=$(grep -o 'mvm.share=[^ ]*' /proc/cmdline | wc -l)";
    let outcome = Boot::new().flag("--config", file).script(script).run().expect_code(0);
    assert_eq!((outcome.value("here"), outcome.value("there")), ("served", "served"));
    assert_eq!(outcome.number("places"), 1, "only a tag that is a path is a kernel argument");
    serving.wait().unwrap();
}

/// A user without rights shares a folder of its own: the guest's root is that user.
#[test]
fn without_root_the_guests_root_is_the_user() {
    if std::env::var_os("MVM_KVM_LAB").is_none() {
        eprintln!("skipped: another user has no access to /dev/kvm outside of the lab");
        return;
    }
    const NOBODY: u32 = 65534;
    fs::set_permissions("/dev/kvm", PermissionsExt::from_mode(0o666)).unwrap();
    let folder = TempDir::new().unwrap();
    std::os::unix::fs::chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let script = "cd /work; echo owner=$(stat -c %u .); echo x >file; chmod 600 file && cat file
        chown 1 file 2>/dev/null && echo changed || echo refused";
    let directory = TempDir::new().unwrap();
    let copy = |from: &Path, name: &str| {
        let to = directory.path().join(name);
        fs::copy(from, &to).unwrap();
        to
    };
    let kernel = copy(&tests::kernel("vmlinux"), "vmlinux");
    let virtiofsd = copy(&virtiofsd(), "virtiofsd");
    let (command, boot) = boot_with(folder.path(), "").flag("--kernel", kernel).script(script).command();
    for files in [directory.path(), boot.path()] {
        fs::set_permissions(files, PermissionsExt::from_mode(0o755)).unwrap();
    }
    for entry in fs::read_dir(boot.path()).unwrap() {
        fs::set_permissions(entry.unwrap().path(), PermissionsExt::from_mode(0o666)).unwrap();
    }
    let mut user = Command::new("setpriv");
    user.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(copy(&tests::mvm(), "mvm"));
    user.args(command.get_args());
    let output = user.env("MVM_VIRTIOFSD", virtiofsd).stdin(Stdio::null()).output().unwrap();
    let console = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{console}\n{errors}");
    assert!(console.contains("owner=0") && console.contains("refused"), "{console}\n{errors}");
    let file = fs::metadata(folder.path().join("file")).unwrap();
    assert_eq!((file.uid(), file.gid(), file.mode() & 0o777), (NOBODY, NOBODY, 0o600));
}

/// Where virtiofsd is.
fn virtiofsd() -> PathBuf {
    std::env::var_os("MVM_VIRTIOFSD").expect("tests/run says where it is").into()
}
