//! `mvm cp`, `diff`, `export` and `commit` beside an agent that this process is: a directory is the container's root.

#![allow(missing_docs, reason = "tests are named after what they show")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a panic is a failed test")]

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, OnceLock};
use std::thread;

use agent_protocol::{
    CopyWhat, Decoder, Failure, FailureKind, FileInfo, PieceReader, PieceWriter, Reply, Request, VERSION,
    encode,
};
use copies::{Owner, PackOptions, Rules};
use instance::{Identity, Instance, Summary};
use rstest::rstest;
use rustix::fs::{FlockOperation, flock};
use serde_json::json;
use tempfile::TempDir;

/// What the agent sends in place of what it was asked for: of a directory, or of a file.
type Sends = Arc<dyn Fn() -> Vec<u8> + Send + Sync>;

/// A container called `NAME`, as far as mvm sees.
struct Fake {
    root: TempDir,
    data: TempDir,
    place: TempDir,
    _instance: Instance,
    _lock: File,
    name: String,
}

/// Where what runs is, for all tests of this process.
fn runtime_directory() -> &'static Path {
    static DIRECTORY: OnceLock<TempDir> = OnceLock::new();
    DIRECTORY
        .get_or_init(|| {
            let directory = TempDir::new().unwrap();
            fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
            instance::set_runtime_directory(directory.path()).unwrap();
            directory
        })
        .path()
}

impl Fake {
    fn new(name: &str) -> Self {
        Self::sending(name, None)
    }

    fn sending(name: &str, sends: Option<Sends>) -> Self {
        runtime_directory();
        let identity = Identity { name: Some(name.parse().unwrap()), ..Identity::default() };
        let summary =
            Summary { cpus: 1, memory: 1 << 28, kernel: "k".into(), rootfs: None, stop_timeout_ms: None };
        let instance = Instance::claim(&identity, summary).unwrap();
        let (root, data, place) = (TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap());
        let kept = data.path().join("instances").join(instance.id().as_str());
        let names = data.path().join("instances/names");
        fs::create_dir_all(&kept).unwrap();
        fs::create_dir_all(&names).unwrap();
        symlink(instance.id().as_str(), names.join(name)).unwrap();
        let process = json!({"pid": std::process::id(), "start_time": 1, "boot_id": "none"});
        let record = json!({"format": 1, "id": instance.id().as_str(), "name": name, "kind": "container", "created": 1,
            "started": 2, "process": process, "image": "tiny", "image_id": "sha256:00", "command": ["sh"]});
        fs::write(kept.join("record.json"), record.to_string()).unwrap();
        fs::write(kept.join("end.json"), "").unwrap();
        let lock = File::open(&kept).unwrap();
        flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
        let listener = UnixListener::bind(instance.path().join("vsock.sock")).unwrap();
        let top = root.path().to_owned();
        thread::spawn(move || {
            for socket in listener.incoming() {
                let (socket, top, sends) = (socket.unwrap(), top.clone(), sends.clone());
                thread::spawn(move || drop(serve(socket, &top, sends.as_deref())));
            }
        });
        Self { root, data, place, _instance: instance, _lock: lock, name: name.to_owned() }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--signal", "KILL", "60", env!("CARGO_BIN_EXE_mvm"), "--runtime-dir"]);
        command.arg(runtime_directory()).args(arguments).env("MVM_DATA_DIR", self.data.path());
        command.env_remove("MVM_LOG").current_dir(self.place.path()).stdin(Stdio::null());
        command
    }

    fn mvm(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// `mvm cp`, in which `@` is the container.
    fn cp(&self, arguments: &[&str]) -> Output {
        let arguments: Vec<String> =
            arguments.iter().map(|argument| argument.replace('@', &format!("{}:", self.name))).collect();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.mvm(&[&["cp"], &arguments[..]].concat())
    }

    fn copies(&self, arguments: &[&str]) {
        let output = self.cp(arguments);
        assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}: {output:?}");
    }

    /// The line of an error.
    fn refuses(&self, arguments: &[&str]) -> String {
        line(&self.cp(arguments))
    }

    fn in_root(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    fn here(&self, path: &str) -> PathBuf {
        self.place.path().join(path)
    }
}

/// The line of an error.
fn line(output: &Output) -> String {
    let line = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(output.status.code() == Some(1) && line.lines().count() == 1, "{output:?}");
    line
}

fn say(socket: &mut UnixStream, reply: &Reply) -> io::Result<()> {
    socket.write_all(&encode(reply).unwrap())
}

/// What the agent does on a connection.
fn serve(
    mut socket: UnixStream,
    top: &Path,
    sends: Option<&(dyn Fn() -> Vec<u8> + Send + Sync)>,
) -> io::Result<()> {
    let mut byte = [0];
    while byte != *b"\n" {
        socket.read_exact(&mut byte)?;
    }
    socket.write_all(b"OK 1\n")?;
    say(&mut socket, &Reply::Hello { version: VERSION })?;
    let mut decoder = Decoder::default();
    let request = loop {
        if let Some(request) = decoder.take().unwrap() {
            break request;
        }
        let mut bytes = vec![0; decoder.wants().unwrap()];
        let count = socket.read(&mut bytes)?;
        decoder.push(&bytes[..count]);
    };
    let Request::Copy { what, .. } = request else { panic!("{request:?}") };
    if let Some(sends) = sends.filter(|_| !matches!(what, CopyWhat::Look { .. })) {
        say(
            &mut socket,
            &if matches!(what, CopyWhat::Read { .. }) { Reply::Found(info(top)?) } else { Reply::Started },
        )?;
        let mut pieces = PieceWriter::new(&socket);
        pieces.write_all(&sends())?;
        pieces.finish()?;
        return say(&mut socket, &Reply::Done);
    }
    match work(&mut socket, top, what) {
        Ok(()) => say(&mut socket, &Reply::Done),
        Err(error) => {
            let kind = match error.kind() {
                io::ErrorKind::NotFound => FailureKind::NotFound,
                _ => FailureKind::Other,
            };
            say(&mut socket, &Reply::Failed(Failure { kind, message: error.to_string() }))?;
            io::copy(&mut socket, &mut io::sink()).map(drop)
        }
    }
}

fn info(path: &Path) -> io::Result<FileInfo> {
    let data = fs::symlink_metadata(path)?;
    Ok(FileInfo { mode: data.mode(), size: data.len(), mtime: (data.mtime(), 0), target: Vec::new() })
}

fn work(socket: &mut UnixStream, top: &Path, what: CopyWhat) -> io::Result<()> {
    let below = |path: &[u8]| {
        let path = String::from_utf8(path.to_vec()).unwrap();
        PathBuf::from(format!("{}/{path}", top.display()))
    };
    match what {
        CopyWhat::Look { path } => {
            let mut info = info(&below(&path))?;
            if let Ok(target) = fs::read_link(below(&path)) {
                info.target = [b"/", target.to_str().unwrap().as_bytes()].concat();
            }
            say(socket, &Reply::Found(info))?;
        }
        CopyWhat::Read { path, name, sparse } => {
            let path = below(&path);
            let info = info(&path)?;
            let is_directory = info.mode & libc::S_IFMT == libc::S_IFDIR;
            say(socket, &Reply::Found(info))?;
            let (parent, entry) = match is_directory {
                true => (path.as_path(), "."),
                false => (path.parent().unwrap(), path.file_name().unwrap().to_str().unwrap()),
            };
            let mut pieces = PieceWriter::new(&*socket);
            copies::pack(
                File::open(parent)?.as_fd(),
                entry.as_bytes(),
                &name,
                PackOptions { sparse },
                &mut pieces,
            )
            .map_err(io::Error::other)?;
            pieces.finish()?;
        }
        CopyWhat::Write { path, to_user } => {
            let directory = File::open(below(&path))?;
            if !directory.metadata()?.is_dir() {
                return Err(io::Error::other("not a directory"));
            }
            say(socket, &Reply::Started)?;
            let owner = if to_user { Owner::Set(55, 66) } else { Owner::Kept };
            let rules = Rules { owner, ..Rules::default() };
            let mut pieces = PieceReader::new(&*socket);
            copies::unpack(directory.as_fd(), &mut pieces, &rules).map_err(io::Error::other)?;
            io::copy(&mut pieces, &mut io::sink())?;
        }
        CopyWhat::Changes => {
            say(socket, &Reply::Started)?;
            let mut pieces = PieceWriter::new(&*socket);
            pieces.write_all(b"Cetc\0Aetc/new\0Dbin/\x1b[2J\0")?;
            pieces.finish()?;
        }
        CopyWhat::Root | CopyWhat::Layer { .. } => {
            say(socket, &Reply::Started)?;
            let mut pieces = PieceWriter::new(&*socket);
            copies::pack(File::open(top)?.as_fd(), b".", b"", PackOptions::default(), &mut pieces)
                .map_err(io::Error::other)?;
            pieces.finish()?;
        }
    }
    Ok(())
}

#[test]
fn files_go_where_docker_puts_them() {
    let fake = Fake::new("places");
    fs::create_dir_all(fake.in_root("src/sub")).unwrap();
    fs::create_dir(fake.in_root("to")).unwrap();
    fs::write(fake.in_root("src/a"), "a").unwrap();
    fs::write(fake.in_root("src/sub/b"), "b").unwrap();
    symlink("src/a", fake.in_root("link")).unwrap();
    fake.copies(&["@/src/a", "."]);
    fake.copies(&["@src/a", "renamed"]);
    fake.copies(&["@/src", "tree"]);
    fake.copies(&["@/src", "tree"]);
    fake.copies(&["@/src/.", "tree/again"]);
    fake.copies(&["@/link", "."]);
    fake.copies(&["-L", "@/link", "followed"]);
    for (path, content) in [
        ("a", "a"),
        ("renamed", "a"),
        ("tree/sub/b", "b"),
        ("tree/src/sub/b", "b"),
        ("tree/again/sub/b", "b"),
        ("followed", "a"),
    ] {
        assert_eq!(fs::read_to_string(fake.here(path)).unwrap(), content, "{path}");
    }
    assert_eq!(fs::read_link(fake.here("link")).unwrap().to_str(), Some("src/a"));
    fake.copies(&["tree", "@/to"]);
    fake.copies(&["tree/.", "@/to/content"]);
    fake.copies(&["-a", "a", "@/to/mine"]);
    assert_eq!(fs::read_to_string(fake.in_root("to/tree/sub/b")).unwrap(), "b");
    assert_eq!(fs::read_to_string(fake.in_root("to/content/sub/b")).unwrap(), "b");
    let data = fake.in_root("to/mine").metadata().unwrap();
    assert_eq!((data.uid(), data.gid()), (55, 66));
    for (arguments, says) in [
        (&["@/none", "."][..], "there is no file /none in the container"),
        (&["@/src/a", "none/"], "cannot copy to none/: no such directory"),
        (&["@/src/a", "none/x"], "the directory none does not exist"),
        (&["@/src", "a"], "cannot copy a directory to what is not one"),
        (&["@/src", "/dev/null"], "neither a directory nor a regular file"),
        (&["none", "@/to"], "none: No such file"),
        (&["a", "@/none/x"], "No such file"),
        (&["a", "@/to/none/"], "no such directory"),
        (&["tree", "@/to/mine"], "cannot copy a directory to what is not one"),
        (&["-", "@/none"], "has to be a directory that exists"),
        (&["@/a", "@/b"], "copying between containers is not supported"),
        (&["a", "b"], "neither SOURCE nor TARGET is CONTAINER:PATH"),
        (&["a", "@"], "the path is empty"),
        (&["a", "nosuch:/x"], "nosuch"),
    ] {
        let line = fake.refuses(arguments);
        assert!(line.contains(says), "{arguments:?}: {line}");
    }
}

#[test]
fn archives_come_from_standard_input_and_go_to_standard_output() {
    let fake = Fake::new("archives");
    fs::create_dir(fake.in_root("to")).unwrap();
    fs::write(fake.here("file"), vec![3; 500_000]).unwrap();
    let tar = Command::new("tar").args(["c", "file"]).current_dir(fake.place.path()).output().unwrap().stdout;
    let put = |archive: &[u8]| {
        let mut child = fake.command(&["cp", "-", "archives:/to"]);
        let mut child = child.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        // Who reads no more says why.
        let _ = input.write_all(archive);
        drop(input);
        child.wait_with_output().unwrap()
    };
    assert!(put(&tar).status.success());
    assert_eq!(fs::read(fake.in_root("to/file")).unwrap(), vec![3; 500_000]);
    assert!(line(&put(&tar[..1000])).contains("ends early"));
    assert!(line(&put(&[b'x'; 2000])).contains("it is not a tar archive"));
    assert!(line(&put(b"\x1f\x8b\x08\0")).contains("zcat"));
    let got = fake.cp(&["@/to", "-"]);
    assert!(got.status.success());
    let mut child =
        Command::new("tar").arg("t").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&got.stdout).unwrap();
    assert_eq!(String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap(), "to/\nto/file\n");
    let exported = fake.mvm(&["export", "-o", "root.tar", "archives"]);
    assert!(exported.status.success(), "{exported:?}");
    let list = Command::new("tar").args(["tf", "root.tar"]).current_dir(fake.place.path()).output().unwrap();
    assert_eq!(String::from_utf8(list.stdout).unwrap(), "to/\nto/file\n");
    let changes = fake.mvm(&["diff", "archives"]);
    assert_eq!(String::from_utf8(changes.stdout).unwrap(), "D /bin/\\u{1b}[2J\nC /etc\nA /etc/new\n");
}

/// A header of a tar stream.
fn entry(kind: u8, name: &str, link: &str, data: &[u8]) -> Vec<u8> {
    let mut header = vec![0_u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..107].copy_from_slice(b"0004755");
    header[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
    header[156] = kind;
    header[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    [&header, data, &vec![0; data.len().next_multiple_of(512) - data.len()]].concat()
}

#[rstest]
#[case::other_name(|| entry(b'0', ".bashrc", "", b"x"), "the archive has .bashrc in it, which was not asked for")]
#[case::above(|| entry(b'0', "tree/../../x", "", b"x"), "tree/../../x in the archive is outside")]
#[case::absolute(|| entry(b'0', "/etc/passwd", "", b"x"), "/etc/passwd in it, which was not asked for")]
#[case::through_a_link(|| [entry(b'5', "tree", "", b""), entry(b'2', "tree/l", "/tmp", b""), entry(b'0', "tree/l/x", "", b"x")].concat(), "cannot open tree/l")]
#[case::link_to_what_is_there(|| [entry(b'5', "tree", "", b""), entry(b'1', "tree/x", "secret", b"")].concat(), "secret in it, which was not asked for")]
#[case::noise(|| vec![7; 5000], "it is not a tar archive")]
#[case::end(|| entry(b'0', "tree", "", b"x")[..300].to_vec(), "ends early")]
fn a_container_that_lies_writes_nothing_else(#[case] sends: fn() -> Vec<u8>, #[case] says: &str) {
    static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let fake = Fake::sending(&format!("liar{number}"), Some(Arc::new(sends)));
    fs::create_dir(fake.in_root("tree")).unwrap();
    fs::write(fake.here("secret"), "mine").unwrap();
    let line = fake.refuses(&["@/tree", "."]);
    assert!(line.contains(says), "{line}");
    assert_eq!(fs::read(fake.here("secret")).unwrap(), b"mine");
    assert_eq!(fake.here("secret").metadata().unwrap().nlink(), 1);
    let others = fs::read_dir(fake.place.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(others.into_iter().all(|name| name == "secret" || name == "tree"));
}

#[test]
fn device_nodes_are_for_root_alone() {
    let sends = || {
        [entry(b'5', "tree", "", b""), entry(b'6', "tree/pipe", "", b""), entry(b'3', "tree/null", "", b"")]
            .concat()
    };
    let fake = Fake::sending("devices", Some(Arc::new(sends)));
    fs::create_dir(fake.in_root("tree")).unwrap();
    let output = fake.cp(&["@/tree", "."]);
    assert!(fake.here("tree/pipe").metadata().unwrap().file_type().is_fifo());
    if rustix::process::geteuid().is_root() {
        assert!(output.status.success() || line(&output).contains("cannot make tree/null"), "{output:?}");
    } else {
        assert!(line(&output).contains("1 device nodes, which only root can make"));
    }
}

/// Somebody who has taken over the process that unpacks.
#[cfg(feature = "attack")]
#[test]
fn who_unpacks_has_its_directory_and_nothing_else() {
    let fake = Fake::new("sealed");
    fs::write(fake.in_root("file"), "text").unwrap();
    fs::create_dir(fake.here("target")).unwrap();
    fs::write(fake.here("secret"), "secret").unwrap();
    let attacked = |options: &[&str], attack: &str| {
        let arguments = [&["cp"], options, &["sealed:/file", "target"]].concat();
        let line = line(&fake.command(&arguments).env("MVM_TEST_ATTACK", attack).output().unwrap());
        line.strip_prefix("mvm: cannot copy to target: ").unwrap_or_else(|| panic!("{line}")).to_owned()
    };
    let path = |name: &str| fake.here(name).display().to_string();
    for options in [&[][..], &["-a"]] {
        for (attack, call) in [
            ("execve", "execve"),
            ("fork", "clone"),
            ("ptrace", "ptrace"),
            ("kill", "kill"),
            ("unix", "socket"),
        ] {
            let expected = format!(
                "the process that does it was ended, as it made the system call {call}, which it never needs: the \
                 container may be hostile, or mvm has a fault (SECURITY.md says how to report it)\n"
            );
            assert_eq!(attacked(options, attack), expected);
        }
        // Root has no other root, others Landlock.
        let is_root = rustix::process::geteuid().is_root();
        // SAFETY: without attributes the call takes no memory.
        let landlock =
            unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, 1) };
        if !is_root && landlock < 2 {
            return eprintln!("skipped: this host has no Landlock");
        }
        for attack in [
            "read:/etc/passwd".to_owned(),
            "read:../secret".to_owned(),
            format!("read:{}", path("secret")),
            format!("append:{}", path("secret")),
            format!("write:{}", path("new")),
            "write:../new".to_owned(),
        ] {
            let line = attacked(options, &attack);
            // With Landlock and without.
            let denied = line.contains("Permission denied") || line.contains("No such file or directory");
            // Above its root is the root itself.
            let is_inside = is_root && attack == "write:../new" && fake.here("target/new").exists();
            assert!(denied || is_inside, "{attack}: {line}");
        }
        assert_eq!(attacked(options, "write:own"), "the attack succeeded\n");
        assert!(!fake.here("new").exists());
        assert_eq!(fs::read(fake.here("secret")).unwrap(), b"secret");
    }
}
