//! `mvm exec` and `mvm cp` for VMs of `mvm boot`, whose guest runs the agent as a service.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use agent_protocol::{CopyWhat, Decoder, Exec, GUEST, MAX_EXECS, PORT, Reply, Request, encode};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tests::{Boot, Guest, Terminal, container_assets, mvm, vsock_program};

use super::containers::{text, with_input};

/// Longer than a guest takes to start a program.
const PATIENCE: Duration = Duration::from_secs(60);

/// A small guest called "vm" that runs a script.
struct Vm {
    guest: Guest,
    place: TempDir,
}

impl Vm {
    /// Boots it with `boot`. In `script`, the agent is /tmp/agent, and tests/programs/vsock.c is /tmp/vsock.
    fn start(boot: Boot, script: &str) -> Self {
        let place = TempDir::new().unwrap();
        let disk = |name: &str, program: PathBuf| {
            let mut bytes = fs::read(program).unwrap();
            bytes.resize(bytes.len().next_multiple_of(512), 0);
            let path = place.path().join(name);
            fs::write(&path, bytes).unwrap();
            format!("{},readonly,id={name}", path.display())
        };
        let get = "for d in /sys/block/vd*; do
                case $(cat $d/serial) in agent|vsock) cat /dev/${d##*/} >/tmp/$(cat $d/serial);; esac
            done
            chmod +x /tmp/agent /tmp/vsock";
        let boot = boot
            .flag("--runtime-dir", place.path().join("run"))
            .flag("--name", "vm")
            .flag("--disk", disk("agent", container_assets().join("mvm-agent")))
            .flag("--disk", disk("vsock", vsock_program()))
            .script(&format!("{get}\n{script}"));
        Self { guest: boot.start(), place }
    }

    /// `mvm COMMAND…`, where the VM is found.
    fn mvm(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(mvm());
        command.env("MVM_DATA_DIR", self.place.path().join("data"));
        command.arg("--runtime-dir").arg(self.place.path().join("run")).args(arguments);
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.mvm(arguments).output().unwrap()
    }

    /// Waits until the agent takes commands.
    fn wait_for_agent(&self) {
        self.wait_for_agent_of("vm");
    }

    /// The same for another VM than this one.
    fn wait_for_agent_of(&self, name: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.run(&["exec", name, "true"]);
            if output.status.success() {
                return;
            }
            assert!(Instant::now() < deadline, "{}", text(&output.stderr));
        }
    }

    /// What a script in the guest prints.
    fn shell(&self, script: &str) -> String {
        let output = self.run(&["exec", "vm", "sh", "-c", script]);
        assert!(output.status.success(), "{script}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// `mvm cp`, which has to succeed and to say nothing.
    fn copy(&self, arguments: &[&str]) {
        let output = self.run(&[&["cp"], arguments].concat());
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "{arguments:?}");
    }

    /// The one line of a command that fails with `code`.
    fn refused(&self, arguments: &[&str], code: i32, says: &str) {
        let output = self.run(arguments);
        let line = text(&output.stderr);
        assert_eq!((output.status.code(), line.lines().count()), (Some(code), 1), "{arguments:?}: {line}");
        assert!(line.contains(says), "{arguments:?}: no {says:?} in {line}");
    }
}

/// The agent is started each time a line is typed, and ends at the next one.
const SERVICE: &str = "echo 'web:x:33:34:Web:/srv:/bin/sh' >>/etc/passwd; echo 'wheel:x:10:web' >/etc/group
    mkdir -p /srv; chown 33:34 /srv
    while read line; do
        /tmp/agent --service & pid=$!; read line; kill -9 $pid; wait $pid; echo gone
    done";

/// A command: its options, its words, its input, and the output and exit code that it has to have.
type Row = (&'static [&'static str], &'static [&'static str], &'static str, &'static str, i32);

const ROWS: &[Row] = &[
    (&[], &["sh", "-c", "echo out; echo err >&2; exit 7"], "", "out\n", 7),
    (&[], &["sh", "-c", "kill -9 $$"], "", "", 137),
    (&["-i"], &["cat"], "some input\nand more\n", "some input\nand more\n", 0),
    (&[], &["cat"], "not passed on", "", 0),
    (&[], &["sh", "-c", "id -u; echo $HOME $USER $SHELL; pwd"], "", "0\n/root root /bin/sh\n/root\n", 0),
    (
        &["-u", "web"],
        &["sh", "-c", "id -u; echo $HOME $LOGNAME; pwd; grep -E '^(Groups|CapEff)' /proc/self/status"],
        "",
        "33\n/srv web\n/srv\nGroups:\t10 34 \nCapEff:\t0000000000000000\n",
        0,
    ),
    (&["-u", "33:5"], &["sh", "-c", "id -u; id -g"], "", "33\n5\n", 0),
    // A number without an account, and a home that it may not enter.
    (
        &["-u", "77"],
        &["sh", "-c", "id -u; pwd; touch /x 2>/dev/null || echo denied"],
        "",
        "77\n/\ndenied\n",
        0,
    ),
    (
        &["-w", "/usr", "-e", "A=1", "-e", "PATH=/bin"],
        &["sh", "-c", "pwd; echo $A $PATH"],
        "",
        "/usr\n1 /bin\n",
        0,
    ),
    (&["-t"], &["sh", "-c", "test -t 0 && test -t 1 && test -t 2 && echo $TERM"], "", "xterm\r\n", 0),
    (
        &[],
        &["sh", "-c", "umask; ls /proc/self/fd | wc -l; cat /proc/self/oom_score_adj"],
        "",
        "0022\n4\n0\n",
        0,
    ),
    (&["--privileged"], &["sh", "-c", "head -c 3000000 /dev/zero | wc -c"], "", "3000000\n", 0),
];

#[test]
fn a_vm_that_goes_on_has_its_root_and_an_agent_of_its_own() {
    let mut vm = Vm::start(Boot::new().switch("--agent"), SERVICE);
    vm.guest.wait_for("init: started");
    vm.guest.type_text("\n");
    vm.wait_for_agent();
    // In the kernel's memory alone, or on the disk too.
    vm.shell("mkdir -p /root; echo saved >/root/a; sync; echo saved >/root/b");
    let snapshot = vm.place.path().join("snapshot");
    for arguments in [&["snapshot", "vm"][..], &["restore", "-d", "--name", "other"]] {
        let output = vm.run(&[arguments, &[snapshot.to_str().unwrap()]].concat());
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        vm.shell("echo first >/root/a; echo first >/root/b; sync");
    }
    vm.wait_for_agent_of("other");
    let shell = |name, script| text(&vm.run(&["exec", name, "sh", "-c", script]).stdout);
    assert_eq!(shell("other", "cat /root/a /root/b"), "saved\nsaved\n");
    shell("other", "echo second >/root/a; sync; echo 3 >/proc/sys/vm/drop_caches");
    assert_eq!(shell("other", "cat /root/a /root/b"), "second\nsaved\n");
    assert_eq!(shell("vm", "cat /root/a /root/b"), "first\nfirst\n");
    assert!(vm.run(&["kill", "other"]).status.success());
}

#[test]
fn commands_run_in_the_guest_and_files_go_both_ways() {
    let mut vm = Vm::start(Boot::new().switch("--agent"), SERVICE);
    vm.guest.wait_for("init: started");
    // Before there is an agent.
    vm.refused(&["exec", "vm", "true"], 1, "vm: mvm's agent does not answer in the guest: ");
    vm.guest.type_text("\n");
    vm.wait_for_agent();
    for (options, words, input, expected, code) in ROWS {
        let command = vm.mvm(&[&["exec"], *options, &["vm"], *words].concat());
        let output = with_input(command, input.as_bytes());
        let errors = text(&output.stderr);
        assert_eq!(
            (text(&output.stdout), output.status.code()),
            ((*expected).into(), Some(*code)),
            "{words:?}: {errors}"
        );
    }
    for (arguments, code, says) in [
        (&["exec", "vm", "nosuch"][..], 127, "executable file not found in $PATH"),
        (&["exec", "vm", "/etc/passwd"], 126, "permission denied"),
        (&["exec", "-u", "nosuch", "vm", "id"], 126, "unable to find user nosuch"),
        (&["exec", "-w", "/nosuch", "vm", "id"], 127, "cannot enter the working directory /nosuch"),
        (&["exec", "-u", "web", "-w", "/root/x", "vm", "id"], 126, "cannot enter the working directory"),
        (&["diff", "vm"], 1, "it is a VM, and not a container: `mvm cp`"),
        (&["export", "vm"], 1, "it is a VM, and not a container: `mvm cp`"),
        (&["commit", "vm"], 1, "it is a VM, and not a container: `mvm cp`"),
        (&["cp", "vm:/nosuch", "/tmp/x"], 1, "vm: there is no file /nosuch in the VM"),
        (&["cp", "/etc/passwd", "vm:/nosuch/x"], 1, "vm"),
    ] {
        if arguments.contains(&"/root/x") {
            vm.shell("mkdir -p /root/x; chmod 700 /root");
        }
        vm.refused(arguments, code, says);
    }
    signals_terminals_and_what_is_detached(&vm);
    files(&vm);
    limits_and_requests_that_are_refused(&vm);
    // The agent dies: a command that it has started is on its own, and the next agent takes others.
    let mut lost = vm.mvm(&["exec", "vm", "sh", "-c", "echo started; sleep 1000"]);
    let mut lost = lost.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(lost.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "started\n");
    vm.guest.type_text("\n");
    vm.guest.wait_for("gone");
    let lost = lost.wait_with_output().unwrap();
    assert_eq!(lost.status.code(), Some(137), "{}", text(&lost.stderr));
    assert!(text(&lost.stderr).contains("the VM has ended, or the agent in it"), "{}", text(&lost.stderr));
    vm.refused(&["cp", "vm:/etc/passwd", "-"], 1, "mvm's agent does not answer in the guest");
    vm.guest.type_text("\n");
    vm.wait_for_agent();
    assert_eq!(vm.shell("pidof sleep >/dev/null && echo alone"), "alone\n");
}

fn signals_terminals_and_what_is_detached(vm: &Vm) {
    let mut child =
        vm.mvm(&["exec", "vm", "sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done"]);
    let mut child = child.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(9));

    let mut terminal = Terminal::of(vm.mvm(&["exec", "-it", "-u", "web", "vm", "sh"]));
    terminal.press("stty size; echo a$((1 + 1))b $USER\n");
    terminal.wait_for("43 132", 1);
    terminal.wait_for("a2b web", 1);
    terminal.resize(100, 30);
    terminal.press("stty size; stat -c owner=%U $(tty); exit 5\n");
    terminal.wait_for("30 100", 1);
    terminal.wait_for("owner=web", 1);
    assert_eq!(terminal.finish().code(), Some(5));

    let detached = vm.run(&["exec", "-d", "vm", "sh", "-c", "echo dropped; echo done >/tmp/detached"]);
    assert_eq!((detached.status.code(), &*text(&detached.stdout)), (Some(0), ""));
    assert_eq!(vm.shell("until test -s /tmp/detached; do sleep 0.1; done; cat /tmp/detached"), "done\n");
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn files(vm: &Vm) {
    let place = vm.place.path().join("files");
    let from = place.join("from");
    fs::create_dir_all(from.join("sub")).unwrap();
    fs::write(from.join("sub/large"), vec![7; 3_000_000]).unwrap();
    fs::set_permissions(from.join("sub/large"), fs::Permissions::from_mode(0o4750)).unwrap();
    symlink("/etc/passwd", from.join("link")).unwrap();
    vm.copy(&[path(&from), "vm:/srv/to"]);
    let listed =
        vm.shell("cd /srv/to; stat -c '%n %a %U %F' sub sub/large link; readlink link; md5sum <sub/large");
    let sum = Command::new("md5sum").stdin(fs::File::open(from.join("sub/large")).unwrap()).output().unwrap();
    let expected = "sub 755 root directory\nsub/large 4750 root regular file\nlink 777 root symbolic link\n/etc/passwd\n";
    assert_eq!(listed, format!("{expected}{}", text(&sum.stdout)));
    vm.copy(&["vm:/srv/to", path(&place.join("back"))]);
    assert!(fs::read(place.join("back/sub/large")).unwrap() == vec![7; 3_000_000]);
    // On this host it would be a program with the rights of who copies.
    assert_eq!(place.join("back/sub/large").metadata().unwrap().mode() & 0o7777, 0o750);
    assert_eq!(fs::read_link(place.join("back/link")).unwrap(), Path::new("/etc/passwd"));
    // A link of the guest's leads to the guest's file, and a file of a file system in memory is there.
    vm.shell("echo in memory >/tmp/memory; ln -s /tmp/memory /srv/way");
    vm.copy(&["-L", "vm:/srv/way", path(&place.join("followed"))]);
    assert_eq!(fs::read(place.join("followed")).unwrap(), b"in memory\n");
    // Archives, and owners with -a.
    let archive = vm.run(&["cp", "vm:/srv/to/sub", "-"]);
    assert!(archive.status.success(), "{}", text(&archive.stderr));
    let unpacked = with_input(vm.mvm(&["cp", "-a", "-", "vm:/srv"]), &archive.stdout);
    assert!(unpacked.status.success(), "{}", text(&unpacked.stderr));
    assert_eq!(vm.shell("stat -c '%U %s' /srv/sub/large"), "root 3000000\n");
    vm.shell("rm -r /srv/to /srv/sub");
}

/// The messages themselves, as another program on the host could send them.
struct Raw {
    socket: UnixStream,
    decoder: Decoder,
}

impl Raw {
    fn connect(vm: &Vm) -> Self {
        let run = vm.place.path().join("run");
        let id = fs::read_link(run.join("names/vm")).unwrap();
        let mut socket = UnixStream::connect(run.join(id).join("agent.sock")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        writeln!(socket, "CONNECT {PORT}").unwrap();
        let mut byte = [0];
        while byte != *b"\n" {
            socket.read_exact(&mut byte).unwrap();
        }
        let mut raw = Self { socket, decoder: Decoder::default() };
        assert!(matches!(raw.receive(), Reply::Hello { .. }));
        raw
    }

    fn send(&mut self, request: &Request) {
        self.socket.write_all(&encode(request).unwrap()).unwrap();
    }

    fn receive(&mut self) -> Reply {
        loop {
            if let Some(reply) = self.decoder.take().unwrap() {
                return reply;
            }
            let mut bytes = vec![0; self.decoder.wants().unwrap().max(1)];
            let count = self.socket.read(&mut bytes).unwrap();
            assert!(count > 0, "the agent has closed the connection");
            self.decoder.push(bytes.get(..count).unwrap());
        }
    }
}

fn limits_and_requests_that_are_refused(vm: &Vm) {
    let mut raw = Raw::connect(vm);
    for request in [
        Request::Start(Box::default()),
        Request::PowerOff,
        Request::Pod(Box::default()),
        Request::Copy { container: GUEST.into(), what: CopyWhat::Changes },
        Request::Exec { container: "0123456789ab".into(), id: "x".into(), exec: Box::default() },
        Request::Exec { container: GUEST.into(), id: "../x".into(), exec: Box::default() },
    ] {
        raw.send(&request);
        let reply = raw.receive();
        assert!(matches!(reply, Reply::Failed(_)), "{request:?}: {reply:?}");
    }
    let sleep = Exec { args: ["sleep", "1000"].map(Into::into).into(), is_detached: true, ..Exec::default() };
    let exec = |id: usize| Request::Exec {
        container: GUEST.into(),
        id: format!("x{id}"),
        exec: Box::new(sleep.clone()),
    };
    for id in 0..MAX_EXECS {
        raw.send(&exec(id));
        assert_eq!(raw.receive(), Reply::Started, "{id}");
    }
    raw.send(&exec(MAX_EXECS));
    let Reply::Failed(failure) = raw.receive() else { panic!("there is no limit") };
    assert!(failure.message.contains("the guest runs 64 commands"), "{}", failure.message);
    vm.refused(&["exec", "vm", "true"], 126, "the guest runs 64 commands of the host's, which is the most");
    for id in 0..MAX_EXECS {
        raw.send(&Request::Signal { container: format!("x{id}"), signal: 9 });
    }
    let mut ended = 0;
    while ended < MAX_EXECS {
        match raw.receive() {
            Reply::Exited(exit) => {
                assert_eq!(exit.code, 137);
                ended += 1;
            }
            reply => assert_eq!(reply, Reply::Done),
        }
    }
    // What they were is forgotten with the connection.
    drop(raw);
    vm.wait_for_agent();
    // Noise ends a connection after a last word, and nothing else.
    let mut noise = Raw::connect(vm);
    noise.socket.write_all(&[0xff; 100]).unwrap();
    let read = (&mut noise.socket).take(4096).read_to_end(&mut Vec::new());
    assert!(!matches!(&read, Err(error) if error.kind() == ErrorKind::WouldBlock), "the connection stays");
    assert_eq!(vm.shell("echo there"), "there\n");
}

#[test]
fn what_is_no_agent_in_the_guest_is_named_in_a_line_within_its_deadline() {
    // A socket of the user's own, as before there was --agent.
    let sockets = TempDir::new().unwrap();
    let script = "for source in /dev/urandom 'sleep 1000'; do
            read line
            case $source in /*) /tmp/vsock listen 1000 <$source >/dev/null;; *) $source | /tmp/vsock listen 1000;; esac
        done";
    let mut vm = Vm::start(Boot::new().flag("--vsock", sockets.path().join("v")), script);
    vm.guest.wait_for("init: started");
    vm.guest.type_text("\n");
    vm.guest.wait_for_times("listening", 1);
    vm.refused(&["exec", "vm", "true"], 1, "the agent sent an invalid message");
    vm.guest.type_text("\n");
    vm.guest.wait_for_times("listening", 2);
    let start = Instant::now();
    vm.refused(&["cp", "vm:/etc/passwd", "-"], 1, "mvm's agent does not answer in the guest");
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
}
