//! Files on their way into a container, or the guest, and out of it: what a process of the agent's does that has
//! entered the container.
//!
//! It is a copy of the agent in the container's mount namespace and root, so that no link leads out of it, and in its
//! control group, so that what it uses is the container's. The container's processes do not see it. The host's
//! connection is its own: nothing of the stream passes through the agent.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use agent_protocol::{CopyWhat, Failure, FailureKind, FileInfo, PieceReader, PieceWriter, Reply, encode};
use copies::{ChangeKind, Changes, Owner, PackOptions, Rules};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, openat, readlink, statat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::cgroup::is_frozen;
use crate::child::{close_others, reset, shortened};
use crate::error::{During, Result, failure};
use crate::user::Accounts;

/// How many links one path may have in it, as for the kernel.
const MAX_LINKS: u32 = 40;
/// How many files the process may have open: two for each directory on the way to a file, of which a path has 2047.
const MAX_OPEN: u64 = 8192;
/// How long the container's processes may take to stand still.
const FREEZE: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

/// What the process has of its container.
pub struct Entered<'a> {
    /// The container's first process; none for the guest that this process is in already.
    pub first: Option<BorrowedFd<'a>>,
    /// What takes its changes, and the image.
    pub layers: Option<(BorrowedFd<'a>, BorrowedFd<'a>)>,
    /// What was made in its root to mount on.
    pub mounted: &'a [Vec<u8>],
    /// Its user, as the container has it.
    pub user: &'a str,
    /// The file that says whether its processes stand still, where they are to.
    pub freezes: Option<BorrowedFd<'a>>,
}

/// Does what is asked for, and ends. `pending` was not sent yet on `connection`.
pub fn run(entered: &Entered<'_>, connection: &OwnedFd, pending: &[u8], what: &CopyWhat) -> ! {
    let layers = entered.layers.map(|(upper, lower)| [upper, lower]);
    let mut kept = vec![connection.as_fd()];
    kept.extend(layers.into_iter().flatten().chain(entered.first).chain(entered.freezes));
    close_others(kept);
    reset();
    rustix::process::umask(Mode::empty());
    allow_open_files();
    let mut host = Host(connection.as_fd());
    // Where the host has gone, no process reads it.
    if rustix::io::ioctl_fionbio(connection, false).is_ok() && host.write_all(pending).is_ok() {
        let done = enter(entered).and_then(|()| work(entered, &mut host, what));
        if let Err(failure) = done {
            host.say(&Reply::Failed(Failure { message: shortened(&failure.message), ..failure }));
            // What the host still sends is taken, so that it reads this.
            if matches!(what, CopyWhat::Write { .. }) {
                let _ = io::copy(&mut host, &mut io::sink());
            }
        }
    }
    // SAFETY: it ends the process, without what the copy of the agent would do at its end.
    unsafe { libc::_exit(0) }
}

fn allow_open_files() {
    let limit = libc::rlimit64 { rlim_cur: MAX_OPEN, rlim_max: MAX_OPEN };
    // SAFETY: the kernel reads the limit, which lives until the call returns.
    unsafe { libc::setrlimit64(libc::RLIMIT_NOFILE, &raw const limit) };
    // It is killed before the container's own processes.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
}

/// The host's end of the connection.
struct Host<'a>(BorrowedFd<'a>);

impl Read for Host<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(self.0, buffer)?)
    }
}

impl Write for Host<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(self.0, bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Host<'_> {
    fn say(&mut self, reply: &Reply) {
        if let Ok(message) = encode(reply) {
            let _ = self.write_all(&message);
        }
    }

    /// Sends what `write` writes as a stream, and how that went.
    fn stream(&mut self, write: impl FnOnce(&mut PieceWriter<&mut Self>) -> Result<()>) -> Result<()> {
        let mut pieces = PieceWriter::new(&mut *self);
        let written = write(&mut pieces);
        pieces.finish().during("send the stream")?;
        written?;
        self.say(&Reply::Done);
        Ok(())
    }
}

/// Enters the container, whose processes stand still then where that is asked for.
fn enter(entered: &Entered<'_>) -> Result<()> {
    if let Some(events) = entered.freezes {
        wait_until_frozen(events)?;
    }
    let Some(first) = entered.first else { return Ok(()) };
    move_into_thread_name_spaces(first, ThreadNameSpaceType::MOUNT).during("join the container")
}

fn wait_until_frozen(events: BorrowedFd<'_>) -> Result<()> {
    loop {
        if is_frozen(events).during("see whether the container stands still")? {
            return Ok(());
        }
        match poll(&mut [PollFd::from_borrowed_fd(events, PollFlags::PRI)], Some(&FREEZE)) {
            Ok(0) => {
                return Err(failure(
                    "the container's processes could not be paused in 60 s: try again, or use --pause=false"
                        .into(),
                ));
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).during("wait for the container to stand still"),
        }
    }
}

fn work(entered: &Entered<'_>, host: &mut Host<'_>, what: &CopyWhat) -> Result<()> {
    match what {
        CopyWhat::Look { path } => {
            host.say(&Reply::Found(look(path)?));
            Ok(())
        }
        CopyWhat::Read { path, name, sparse } => read(host, path, name, *sparse),
        CopyWhat::Write { path, to_user } => write(host, path, to_user.then_some(entered.user)),
        CopyWhat::Changes => {
            let changes = changes(entered)?;
            host.say(&Reply::Started);
            host.stream(|out| send_changes(&changes, out))
        }
        CopyWhat::Layer { .. } => {
            let changes = changes(entered)?;
            host.say(&Reply::Started);
            host.stream(|out| copies::pack_changes(&changes, out).map(drop).map_err(|error| said(&error)))
        }
        CopyWhat::Root => {
            let root = open_tree(CWD, "/", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC);
            let root = root.during("open the root without what is mounted in it")?;
            host.say(&Reply::Started);
            host.stream(|out| pack(root.as_fd(), b".", b"", PackOptions::default(), out))
        }
    }
}

/// A failure with all its causes.
fn said(error: &dyn std::error::Error) -> Failure {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        message = format!("{message}: {error}");
        source = error.source();
    }
    failure(message)
}

/// What is wrong with a path, as the kernel says it.
fn refused(path: &[u8], error: Errno) -> Failure {
    let kind = if error == Errno::NOENT { FailureKind::NotFound } else { FailureKind::Other };
    let reason = match error {
        Errno::NOENT => "no such file or directory".to_owned(),
        Errno::NOTDIR => "not a directory".to_owned(),
        error => io::Error::from(error).to_string(),
    };
    Failure { kind, message: format!("{}: {reason}", String::from_utf8_lossy(path)) }
}

fn look(path: &[u8]) -> Result<FileInfo> {
    let stat = statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW).map_err(|error| refused(path, error))?;
    let is_link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
    Ok(FileInfo {
        mode: stat.st_mode,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
        target: if is_link { evaluated(path)? } else { Vec::new() },
    })
}

/// The path that `path` leads to when all links in it are followed. Parts that do not exist stay as they are.
fn evaluated(path: &[u8]) -> Result<Vec<u8>> {
    let mut done: Vec<Vec<u8>> = Vec::new();
    let parts = |path: &[u8]| path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect::<Vec<_>>();
    let mut left = VecDeque::from(parts(path));
    let mut links = 0_u32;
    while let Some(part) = left.pop_front() {
        match &part[..] {
            b"" | b"." => continue,
            b".." => drop(done.pop()),
            _ => done.push(part),
        }
        let here = [&b"/"[..], &done.join(&b'/')].concat();
        let Ok(target) = readlink(&here[..], Vec::new()) else { continue };
        links = links.saturating_add(1);
        if links > MAX_LINKS {
            return Err(refused(path, Errno::LOOP));
        }
        let target = target.as_bytes();
        done.pop();
        if target.starts_with(b"/") {
            done.clear();
        }
        parts(target).into_iter().rev().for_each(|part| left.push_front(part));
    }
    Ok([&b"/"[..], &done.join(&b'/')].concat())
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

fn read(host: &mut Host<'_>, path: &[u8], name: &[u8], sparse: bool) -> Result<()> {
    let info = look(path)?;
    let (parent, own) = if FileType::from_raw_mode(info.mode) == FileType::Directory {
        (path, &b"."[..])
    } else {
        let slash = path.iter().rposition(|byte| *byte == b'/');
        let (parent, own) = path.split_at(slash.map_or(0, |slash| slash.saturating_add(1)));
        (if parent.is_empty() { &b"/"[..] } else { parent }, own)
    };
    let parent = openat(CWD, parent, DIRECTORY, Mode::empty()).map_err(|error| refused(path, error))?;
    host.say(&Reply::Found(info));
    host.stream(|out| pack(parent.as_fd(), own, name, PackOptions { sparse }, out))
}

fn pack(
    directory: BorrowedFd<'_>,
    name: &[u8],
    shown: &[u8],
    options: PackOptions,
    out: &mut impl Write,
) -> Result<()> {
    copies::pack(directory, name, shown, options, out).map(drop).map_err(|error| said(&error))
}

fn write(host: &mut Host<'_>, path: &[u8], user: Option<&str>) -> Result<()> {
    let directory = openat(CWD, path, DIRECTORY, Mode::empty()).map_err(|error| refused(path, error))?;
    let owner = match user {
        Some(user) => {
            let identity = Accounts::read().find(user, &[])?;
            Owner::Set(identity.uid, identity.gid)
        }
        None => Owner::Kept,
    };
    let rules = Rules { follows_links: true, owner, makes_devices: true, only: None };
    host.say(&Reply::Started);
    let mut pieces = PieceReader::new(&mut *host);
    copies::unpack(directory.as_fd(), &mut pieces, &rules).map_err(|error| said(&error))?;
    // What follows the end of the stream says nothing.
    io::copy(&mut pieces, &mut io::sink()).during("read the stream")?;
    host.say(&Reply::Done);
    Ok(())
}

fn changes<'a>(entered: &'a Entered<'_>) -> Result<Changes<'a>> {
    let (upper, lower) = entered.layers.ok_or_else(|| failure("the container has not started yet".into()))?;
    Ok(Changes { upper, lower, mounted: entered.mounted })
}

fn send_changes(changes: &Changes<'_>, out: &mut impl Write) -> Result<()> {
    let mut send = |kind: u8, path: &[u8]| {
        let sent =
            out.write_all(&[kind]).and_then(|()| out.write_all(path)).and_then(|()| out.write_all(&[0]));
        sent.map_err(copies::PackError::Write)
    };
    let sent = changes.each(&mut |change| {
        let kind = match change.kind {
            ChangeKind::Added => b'A',
            ChangeKind::Changed => b'C',
            ChangeKind::Deleted => b'D',
        };
        // The root itself is not listed.
        if change.path != b"." {
            send(kind, change.path)?;
        }
        changes.hidden(change, &mut |path| send(b'D', path))
    });
    sent.map_err(|error| said(&error))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::os::unix::net::UnixStream;
    use std::thread;

    use agent_protocol::Decoder;
    use rstest::rstest;

    use super::*;

    /// The host's end of a request that is worked on in this process's own root.
    fn ask(what: CopyWhat) -> UnixStream {
        let (near, far) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let entered = Entered { first: None, layers: None, mounted: &[], user: "12:34", freezes: None };
            let mut host = Host(far.as_fd());
            if let Err(failure) = work(&entered, &mut host, &what) {
                host.say(&Reply::Failed(failure));
                let _ = io::copy(&mut host, &mut io::sink());
            }
        });
        near
    }

    fn reply(socket: &mut UnixStream) -> Reply {
        let mut decoder = Decoder::default();
        loop {
            if let Some(reply) = decoder.take().unwrap() {
                return reply;
            }
            let mut bytes = vec![0; decoder.wants().unwrap()];
            let count = socket.read(&mut bytes).unwrap();
            assert!(count > 0, "the agent has gone");
            decoder.push(&bytes[..count]);
        }
    }

    fn bytes(path: &std::path::Path) -> Vec<u8> {
        use std::os::unix::ffi::OsStrExt;
        path.as_os_str().as_bytes().to_vec()
    }

    #[test]
    fn a_tree_is_read_and_written() {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir_all(top.path().join("from/sub")).unwrap();
        fs::create_dir(top.path().join("to")).unwrap();
        fs::write(top.path().join("from/sub/file"), vec![7; 300_000]).unwrap();
        symlink("/nowhere", top.path().join("from/link")).unwrap();
        let path = bytes(&top.path().join("from"));
        let mut near = ask(CopyWhat::Read { path, name: b"new".to_vec(), sparse: true });
        assert!(matches!(reply(&mut near), Reply::Found(info) if info.mode & libc::S_IFMT == libc::S_IFDIR));
        let mut pieces = PieceReader::new(near);
        let mut stream = Vec::new();
        pieces.read_to_end(&mut stream).unwrap();
        assert_eq!(reply(&mut pieces.into_inner()), Reply::Done);

        let path = bytes(&top.path().join("to"));
        let mut near = ask(CopyWhat::Write { path, to_user: true });
        assert_eq!(reply(&mut near), Reply::Started);
        let mut pieces = PieceWriter::new(near);
        pieces.write_all(&stream).unwrap();
        assert_eq!(reply(&mut pieces.finish().unwrap()), Reply::Done);
        let copied = top.path().join("to/new/sub/file");
        assert_eq!(fs::read(&copied).unwrap(), vec![7; 300_000]);
        let data = copied.metadata().unwrap();
        assert_eq!((data.uid(), data.gid()), (12, 34));
        assert_eq!(fs::read_link(top.path().join("to/new/link")).unwrap().to_str(), Some("/nowhere"));
    }

    #[test]
    fn what_fails_later_is_said_behind_the_stream() {
        let top = tempfile::tempdir().unwrap();
        let mut near = ask(CopyWhat::Write { path: bytes(top.path()), to_user: false });
        assert_eq!(reply(&mut near), Reply::Started);
        let mut pieces = PieceWriter::new(near.try_clone().unwrap());
        // More than any buffer between the two takes.
        pieces.write_all(&vec![1; 8 << 20]).unwrap();
        drop(pieces);
        let Reply::Failed(failure) = reply(&mut near) else { panic!("it was unpacked") };
        assert!(failure.message.contains("not a tar archive"), "{}", failure.message);
    }

    #[rstest]
    #[case::nothing("nothing", FailureKind::NotFound, "no such file or directory")]
    #[case::below_a_file("file/x", FailureKind::Other, "not a directory")]
    #[case::slash_behind_a_file("file/", FailureKind::Other, "not a directory")]
    #[case::loops("loop/x", FailureKind::Other, "Too many levels")]
    fn what_is_not_there_is_said(#[case] name: &str, #[case] kind: FailureKind, #[case] says: &str) {
        let top = tempfile::tempdir().unwrap();
        fs::write(top.path().join("file"), "").unwrap();
        symlink("loop", top.path().join("loop")).unwrap();
        let path = [bytes(top.path()), b"/".to_vec(), name.as_bytes().to_vec()].concat();
        for what in
            [CopyWhat::Look { path: path.clone() }, CopyWhat::Write { path: path.clone(), to_user: false }]
        {
            let Reply::Failed(failure) = reply(&mut ask(what)) else { panic!("it was found") };
            assert!(failure.kind == kind && failure.message.contains(says), "{failure:?}");
        }
    }

    #[test]
    fn links_are_evaluated_as_far_as_there_is_something() {
        let top = tempfile::tempdir().unwrap();
        let real = fs::canonicalize(top.path()).unwrap();
        fs::create_dir(real.join("dir")).unwrap();
        for (link, target) in [
            ("to-dir", "./dir"),
            ("again", "to-dir/../to-dir"),
            ("broken", "dir/none/../x"),
            ("loop", "loop"),
        ] {
            symlink(target, real.join(link)).unwrap();
        }
        let evaluated = |name: &str| evaluated(&bytes(&real.join(name)));
        for (name, expected) in [
            ("dir", "dir"),
            ("to-dir", "dir"),
            ("again", "dir"),
            ("broken", "dir/x"),
            ("to-dir/new/a", "dir/new/a"),
        ] {
            assert_eq!(evaluated(name).unwrap(), bytes(&real.join(expected)), "{name}");
        }
        assert!(evaluated("loop").is_err());
        assert_eq!(super::evaluated(b"/../..").unwrap(), b"/");
    }
}
