//! `mvm cp`.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use clap::Args;
use container::{FilesError, Outgoing};
use copies::PackOptions;

use super::paths::{Argument, Found, Target, host_source, host_target, in_container, name_of, plan};
use super::progress::{Counted, Progress};
use super::relay::relay;
use super::{Opened, with_vm};
use crate::images::RegistryArguments;
use crate::images::worker::{Job, Outcome, Task};
use crate::process::ExitCode;
use crate::{chain, complain, exit_code};

const EXAMPLES: &str = "\
Examples:
  mvm cp web:/etc/nginx .              a directory, to ./nginx
  mvm cp web:/var/log/. logs           what is in a directory
  mvm cp index.html web:/srv/          a file into a directory
  mvm cp web:/srv - | tar t            as a tar archive
  tar c src | mvm cp - web:/work       from one

A path of a container begins at its root. What begins with / or . is a path of
this host, as in ./a:b. In place of a container it may be a VM that runs, of
`mvm boot --agent`.";

/// Arguments of `mvm cp`, which are those of `docker cp`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct CpCommand {
    /// Keep owners: files that are copied to the host belong to their user and group there, as far as mvm may do that;
    /// those that are copied to a container belong to the container's user, and in a VM to root
    #[arg(long, short)]
    archive: bool,

    /// Follow a link at the end of SOURCE
    #[arg(long, short = 'L')]
    follow_link: bool,

    /// Do not show progress
    ///
    /// That is shown on a terminal only.
    #[arg(long, short)]
    quiet: bool,

    /// What is copied: CONTAINER:PATH, a path of this host, or - for a tar archive on standard input
    #[arg(value_name = "SOURCE")]
    source: OsString,

    /// Where it goes: CONTAINER:PATH, a path of this host, or - for a tar archive on standard output
    #[arg(value_name = "TARGET")]
    target: OsString,
}

impl CpCommand {
    /// Copies files.
    pub fn run(self) -> ExitCode {
        match (Argument::of(&self.source), Argument::of(&self.target)) {
            (Argument::Container(..), Argument::Container(..)) => refuse(
                "copying between containers is not supported: copy to this host first, or through a pipe, as in `mvm cp \
                 ONE:/a - | mvm cp - OTHER:/b`",
            ),
            (Argument::Container(_, path), _) | (_, Argument::Container(_, path)) if path.is_empty() => {
                refuse("the path is empty: use CONTAINER:PATH, as in web:/etc")
            }
            (Argument::Container(word, path), target) => with_vm(&word, |opened| {
                self.copy_out(opened, &path, target).map(|()| exit_code::SUCCESS.into())
            }),
            (source, Argument::Container(word, path)) => with_vm(&word, |opened| {
                self.copy_in(opened, source, &path).map(|()| exit_code::SUCCESS.into())
            }),
            _ => refuse("neither SOURCE nor TARGET is CONTAINER:PATH: use `cp` to copy on this host"),
        }
    }

    /// Copies `path` of a container to this host.
    fn copy_out(&self, opened: &Opened, path: &[u8], target: Argument) -> Result<(), String> {
        let line = |error: &FilesError| opened.line(error);
        let (given, mut path) = (in_container(path), in_container(path));
        let name = name_of(&given);
        opened.check_path(&given)?;
        let target = match target {
            Argument::Host(target) => Some(host_target(&target).map(|found| (target, found))?),
            _ if io::stdout().is_terminal() => {
                return Err("standard output is a terminal: redirect it, as in `> FILE`".into());
            }
            _ => None,
        };
        let mut found = opened.files.look(&path).map_err(|error| line(&error))?;
        if let Some(link) = found.as_ref().filter(|found| self.follow_link && !found.target.is_empty()) {
            path = link.target.clone();
            opened.check_path(&path)?;
            found = opened.files.look(&path).map_err(|error| line(&error))?;
        }
        let found = found.ok_or_else(|| missing(opened, &path))?;
        // By the names of docker's calls.
        opened.note("archive-path");
        let is_directory = kind(found.mode) == Found::Directory;
        let Some((shown, target)) = target else { return self.to_standard(opened, &path, &name) };
        let shown = String::from_utf8_lossy(&shown).into_owned();
        let (directory, name) =
            plan(&name, is_directory, &target).map_err(|why| format!("cannot copy to {shown}: {why}"))?;
        let (_, stream) = opened.files.read(&path, &name, true).map_err(|error| line(&error))?;
        let mut progress = Progress::new(&format!("Copying from {}", opened.noun()), self.quiet);
        let only = (name != b".").then_some(name);
        let registry = RegistryArguments::default();
        let task = |input| Task {
            job: Job::Unpack { only, keeps_owners: self.archive },
            store: None,
            registry: &registry,
            registries: Vec::new(),
            input,
            progress: &(),
        };
        let directory = PathBuf::from(OsString::from_vec(directory));
        let outcome = relay(stream, &mut progress, line, task, Some(directory));
        match outcome.map_err(|line| format!("cannot copy to {shown}: {line}"))? {
            Outcome::Unpacked { devices: 0 } => {}
            Outcome::Unpacked { devices } => {
                return Err(format!(
                    "all was copied to {shown} but {devices} device nodes, which only root can make"
                ));
            }
            _ => return Err("the process that unpacks sent an invalid message".into()),
        }
        progress.finish(&shown);
        Ok(())
    }

    fn to_standard(&self, opened: &Opened, path: &[u8], name: &[u8]) -> Result<(), String> {
        let (_, stream) = opened.files.read(path, name, false).map_err(|error| opened.line(&error))?;
        pass_to(stream, &mut io::stdout().lock(), "standard output", opened)
    }

    /// Copies `source` to `path` of a container.
    fn copy_in(&self, opened: &Opened, source: Argument, path: &[u8]) -> Result<(), String> {
        let line = |error: &FilesError| opened.line(error);
        let shown = format!("{}:{}", opened.word, String::from_utf8_lossy(path));
        let target = container_target(opened, path)?;
        opened.note("extract-to-dir");
        let mut progress = Progress::new(&format!("Copying to {}", opened.noun()), self.quiet);
        let Argument::Host(source) = source else {
            if target.found != Found::Directory {
                return Err(format!("{shown} has to be a directory that exists"));
            }
            if io::stdin().is_terminal() {
                return Err("standard input is a terminal: give a tar archive by `< FILE`".into());
            }
            let mut out = opened.files.write(&target.path, self.archive).map_err(|error| line(&error))?;
            let sent = send_archive(
                &mut io::stdin().lock(),
                &mut Counted { stream: &mut out, progress: &mut progress },
            );
            finish(out, sent, line)?;
            progress.finish(&shown);
            return Ok(());
        };
        let name = String::from_utf8_lossy(&source).into_owned();
        let found = host_source(&source, self.follow_link).map_err(|error| format!("{name}: {error}"))?;
        let cannot = |why: &str| format!("cannot copy to {shown}: {why}");
        let (directory, entry) = plan(&found.name, found.is_directory, &target).map_err(cannot)?;
        let parent = std::fs::File::open(&found.parent);
        let parent = parent.map_err(|error| format!("cannot open {}: {error}", found.parent.display()))?;
        raise_open_files();
        let mut out = opened.files.write(&directory, self.archive).map_err(|error| line(&error))?;
        let mut counted = Counted { stream: &mut out, progress: &mut progress };
        let options = PackOptions { sparse: true };
        let packed = copies::pack(parent.as_fd(), found.entry.as_bytes(), &entry, options, &mut counted);
        let sent = packed.map(drop).map_err(|error| match error {
            copies::PackError::Write(_) => Sent::Broken,
            error => Sent::Failed(chain(&error)),
        });
        finish(out, sent, line)?;
        progress.finish(&shown);
        Ok(())
    }
}

fn refuse(line: &str) -> ExitCode {
    complain(line);
    exit_code::FAILURE.into()
}

/// Why a stream was not sent.
enum Sent {
    /// The agent takes no more of it, and says why.
    Broken,
    /// This side failed, in a line for the user.
    Failed(String),
}

/// Ends a stream that was sent, and waits until it is unpacked.
fn finish(out: Outgoing, sent: Result<(), Sent>, line: impl Fn(&FilesError) -> String) -> Result<(), String> {
    match sent {
        Err(Sent::Failed(why)) => {
            out.abort();
            Err(why)
        }
        Ok(()) | Err(Sent::Broken) => out.finish().map_err(|error| line(&error)),
    }
}

/// Passes a tar archive on.
fn send_archive(input: &mut impl Read, out: &mut impl Write) -> Result<(), Sent> {
    let failed = |error: io::Error| Sent::Failed(format!("cannot read the archive: {error}"));
    let mut buffer = vec![0; 128 << 10];
    let mut is_first = true;
    loop {
        let count = match input.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            count => count.map_err(failed)?,
        };
        let read = buffer.get(..count).unwrap_or_default();
        if std::mem::take(&mut is_first)
            && let Some(program) = compression(read)
        {
            let line =
                format!("the archive is compressed: decompress it, as in `{program} < FILE | mvm cp - …`");
            return Err(Sent::Failed(line));
        }
        if count == 0 {
            return Ok(());
        }
        out.write_all(read).map_err(|_| Sent::Broken)?;
    }
}

/// The program that decompresses what begins so, if it is compressed.
fn compression(start: &[u8]) -> Option<&'static str> {
    let kinds: [(&[u8], _); 4] = [
        (b"\x1f\x8b", "zcat"),
        (b"\x28\xb5\x2f\xfd", "zstdcat"),
        (b"BZh", "bzcat"),
        (b"\xfd7zXZ\0", "xzcat"),
    ];
    kinds.iter().find(|(magic, _)| start.starts_with(magic)).map(|(_, program)| *program)
}

/// Passes a stream of a container's on to `out`, which the user calls `shown`.
pub fn pass_to(
    mut stream: container::Incoming,
    out: &mut impl Write,
    shown: &str,
    opened: &Opened,
) -> Result<(), String> {
    let mut buffer = vec![0; 128 << 10];
    loop {
        let count = match stream.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // It is read again at the end, which says what it is.
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        let written = out.write_all(buffer.get(..count).unwrap_or_default());
        written.map_err(|error| format!("cannot write to {shown}: {error}"))?;
    }
    stream.finish().map_err(|error| opened.line(&error))?;
    out.flush().map_err(|error| format!("cannot write to {shown}: {error}"))
}

fn missing(opened: &Opened, path: &[u8]) -> String {
    let (word, path, noun) = (&opened.word, String::from_utf8_lossy(path), opened.noun());
    format!("{word}: there is no file {path} in the {noun}")
}

fn kind(mode: u32) -> Found {
    match mode & libc::S_IFMT {
        libc::S_IFDIR => Found::Directory,
        _ => Found::File,
    }
}

/// Where a copy to a container goes. A link at the end of its path is followed, whether something is there or not.
fn container_target(opened: &Opened, path: &[u8]) -> Result<Target, String> {
    let given = in_container(path);
    opened.check_path(&given)?;
    let look = |path: &[u8]| opened.files.look(path).map_err(|error| opened.line(&error));
    let (mut path, mut found) = (given.clone(), look(&given)?);
    if let Some(link) = found.as_ref().filter(|found| !found.target.is_empty()) {
        path = link.target.clone();
        opened.check_path(&path)?;
        found = look(&path)?;
    }
    let Some(info) = found else { return Ok(Target { path, found: Found::Nothing }) };
    if !matches!(info.mode & libc::S_IFMT, libc::S_IFDIR | libc::S_IFREG) {
        return Err(format!(
            "{}:{} is neither a directory nor a regular file",
            opened.word,
            String::from_utf8_lossy(&given)
        ));
    }
    Ok(Target { path, found: kind(info.mode) })
}

/// Lets this process open as many files as it may: one for each directory on the way to a file.
pub fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Without it, fewer directories in each other can be copied.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compressed_archive_gets_a_line() {
        for (start, program) in
            [(&b"\x1f\x8b\x08"[..], "zcat"), (b"BZh9", "bzcat"), (b"\xfd7zXZ\0x", "xzcat")]
        {
            let mut out = Vec::new();
            let sent = send_archive(&mut &start[..], &mut out);
            assert!(matches!(sent, Err(Sent::Failed(line)) if line.contains(program)) && out.is_empty());
        }
        let mut out = Vec::new();
        assert!(send_archive(&mut &[7; 300_000][..], &mut out).is_ok());
        assert_eq!(out, [7; 300_000]);
    }
}
