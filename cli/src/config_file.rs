//! Configuration files: that of `mvm boot`, and what all of them have in common.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::root_config::RootConfig;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use thiserror::Error;
use vmm::{ConsoleConfig, DiskConfig, GdbConfig, PmemConfig, ShareConfig, VhostUserConfig};

use crate::options::BootOptions;
use crate::table::{self, Cut};

/// The largest file that is read, in bytes.
const MAX_SIZE: u64 = 1 << 20;
/// How long it may take to come where it is a pipe, as of a shell's `<(command)`.
const PATIENCE: Duration = Duration::from_secs(10);
/// The most characters of a key, and of a message, that an error has in it.
const MAX_KEY: usize = 64;
const MAX_MESSAGE: usize = 1024;

/// Why a configuration file is not accepted.
#[derive(Debug, Error)]
pub enum ConfigFileError {
    #[error("cannot read the configuration {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the configuration {} is a pipe to which nothing was written in {} s", .0.display(), PATIENCE.as_secs())]
    Silent(PathBuf),
    #[error("the configuration {} is larger than 1 MiB; check that it is the right file", .0.display())]
    TooLarge(PathBuf),
    #[error("the configuration {}, line {line}: {message}", path.display())]
    Parse { path: PathBuf, line: usize, message: String },
}

/// Reads the file at `path`. Relative paths in it are relative to its own directory, so that a VM's directory
/// can be moved.
pub fn read(path: &Path) -> Result<BootOptions, ConfigFileError> {
    parse(&read_text(path)?, path)
}

/// Parses `text`, the content of the file at `path`.
pub fn parse(text: &str, path: &Path) -> Result<BootOptions, ConfigFileError> {
    let mut options: BootOptions = parse_as(text, path)?;
    let directory = path.parent().unwrap_or(Path::new(""));
    let place = |path: &mut PathBuf| *path = directory.join(&*path);
    options.kernel.as_mut().map(place);
    options.initrd.as_mut().map(place);
    options.rootfs.as_mut().and_then(RootConfig::path_mut).map(place);
    for DiskConfig { path, .. } in &mut options.disk {
        place(path);
    }
    if let Some(vsock) = &mut options.vsock {
        place(&mut vsock.path);
    }
    options.pmem.iter_mut().map(|PmemConfig { path, .. }| path).for_each(place);
    for ShareConfig { path, .. } in &mut options.share {
        place(path);
    }
    options.vhost_user.iter_mut().map(VhostUserConfig::socket_mut).for_each(place);
    if let Some(ConsoleConfig::File(path)) = &mut options.console {
        place(path);
    }
    if let Some(GdbConfig::Unix(path)) = &mut options.gdb {
        place(path);
    }
    Ok(options)
}

/// Parses `text`, the content of the file at `path`, whose keys are those of `T`.
pub fn parse_as<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, ConfigFileError> {
    toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let line = text.get(..at).unwrap_or_default().matches('\n').count() + 1;
        // The error's own display has an excerpt of the file in it.
        let message = error.message().lines().collect::<Vec<_>>().join("; ");
        let message = in_our_words(&message, text.lines().nth(line.saturating_sub(1)).unwrap_or_default());
        let message = table::shortened(&message, MAX_MESSAGE, Cut::End);
        ConfigFileError::Parse { path: path.to_owned(), line, message }
    })
}

/// The `message` of the TOML library about `line`, in this program's words: with the key, and without Rust's types.
fn in_our_words(message: &str, line: &str) -> String {
    if let Some(rest) = message.strip_prefix("unknown field ") {
        let (key, known) = rest.split_once(", expected ").unwrap_or((rest, ""));
        let known = known.trim_start_matches("one of ").replace('`', "");
        let key = table::shortened(key.trim_matches('`'), MAX_KEY, Cut::End);
        return format!("unknown key {key:?}; the keys are {known}");
    }
    if let Some(rest) = message.strip_prefix("duplicate field ") {
        return format!(
            "the key {:?} is given twice",
            table::shortened(rest.trim_matches('`'), MAX_KEY, Cut::End)
        );
    }
    // A line of a table has its name in brackets.
    let heading = line.trim().strip_prefix('[').map(|name| name.trim_matches(['[', ']']));
    let key = line.split_once('=').map(|(key, _)| key).or(heading);
    let key = key.map(|key| table::shortened(key.trim(), MAX_KEY, Cut::End));
    match (key.as_deref(), message.strip_prefix("invalid type: ")) {
        (Some(key), Some(rest)) => {
            let (found, expected) = rest.split_once(", expected ").unwrap_or((rest, "another"));
            let found = found.replace('`', "").replace("map", "table").replace("sequence", "list");
            format!("{key}: invalid value ({found}): write {expected}")
        }
        (Some(key), None) if !key.is_empty() && !message.contains("TOML") => format!("{key}: {message}"),
        (_, _) => message.to_owned(),
    }
}

/// The text of the file at `path`, which has up to 1 MiB.
pub fn read_text(path: &Path) -> Result<String, ConfigFileError> {
    use std::os::unix::fs::OpenOptionsExt;
    let error = |source| ConfigFileError::Read { path: path.to_owned(), source };
    // Opening a pipe does not wait for its writer then.
    let mut options = std::fs::OpenOptions::new();
    let file = options.read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(error)?;
    let is_pipe = file.metadata().map_err(error)?.file_type().is_fifo();
    let deadline = Instant::now() + PATIENCE;
    let mut text = Vec::new();
    while text.len() as u64 <= MAX_SIZE {
        if is_pipe && !becomes_readable(&file, deadline).map_err(error)? {
            return Err(ConfigFileError::Silent(path.to_owned()));
        }
        match (&file).take(MAX_SIZE + 1).read_to_end(&mut text) {
            // All that is in the pipe by now.
            Err(more) if is_pipe && more.kind() == io::ErrorKind::WouldBlock => {}
            result => {
                result.map_err(error)?;
                break;
            }
        }
    }
    if text.len() as u64 > MAX_SIZE {
        return Err(ConfigFileError::TooLarge(path.to_owned()));
    }
    String::from_utf8(text).map_err(|other| error(io::Error::new(io::ErrorKind::InvalidData, other)))
}

/// Waits until a pipe has something in it, or its last writer has gone; false where neither is so by the deadline.
fn becomes_readable(pipe: &File, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(pipe, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn read_toml(toml: &str) -> Result<BootOptions, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm.toml");
        std::fs::write(&path, toml).unwrap();
        let options = read(&path).map_err(|error| error.to_string())?;
        let kernel = options.kernel.as_ref().unwrap();
        assert_eq!(kernel.strip_prefix(directory.path()).unwrap(), Path::new("vmlinux"));
        Ok(options)
    }

    #[test]
    fn relative_paths_are_relative_to_the_file() {
        let options = read_toml(
            "kernel = 'vmlinux'\nrootfs = '/abs/root.img'\nconsole = 'stdio'\nvsock = 'v.sock,cid=7'",
        )
        .unwrap();
        assert_eq!(options.rootfs.unwrap().path_mut().unwrap(), Path::new("/abs/root.img"));
        assert_eq!(options.console, Some(ConsoleConfig::Stdio));
        let vsock = options.vsock.unwrap();
        assert!(vsock.path.is_absolute() && vsock.path.ends_with("v.sock"), "{vsock}");
    }

    #[test]
    fn shares_and_sockets_are_relative_to_the_file_too() {
        let mut options =
            read_toml("kernel = 'vmlinux'\nshare = ['src:/work', '/usr:/u']\nvhost-user = ['fs=s,tag=t']")
                .unwrap();
        assert!(options.share[0].path.is_absolute() && options.share[1].path == Path::new("/usr"));
        assert_eq!(options.vhost_user[0].socket_mut().parent(), options.share[0].path.parent());
    }

    #[rstest]
    #[case("kernel = 'x'\nkernal = 'y'\n", "line 2: unknown key \"kernal\"; the keys are name, ")]
    #[case("kernel = 'x'\n\nmemory = 'much'", "line 3: memory: invalid size \"much\"")]
    #[case("memory = 512", "line 1: memory: write it in quotes, \"512\"")]
    #[case("cpus = 'two'", "line 1: cpus: invalid number \"two\": use digits, without quotes")]
    #[case("cpus = '2'", "line 1: cpus: write 2 without quotes")]
    #[case("cpus = [2]", "line 1: cpus: invalid value (list): write a number, without quotes")]
    #[case("cpus = -1", "line 1: cpus: invalid CPU count -1: use 1 to 254")]
    #[case("cpus = 0", "line 1: cpus: invalid CPU count 0: use 1 to 254")]
    #[case(
        "cpus = 99999999999999999999",
        "line 1: cpus: invalid CPU count 99999999999999999999: use 1 to 254"
    )]
    #[case("kernel = ''", "line 1: kernel: no path: write that of a file")]
    #[case("initrd = ''", "line 1: initrd: no path: write that of a file")]
    #[case("[disk]\npath = 'x'", "line 1: disk: invalid value (table): write a list of texts in quotes")]
    #[case("[[disk]]\npath = 'x'", "line 1: disk: invalid value (table): write text in quotes")]
    #[case("nested = 'true'", "line 1: nested: invalid value \"true\": write true or false, without quotes")]
    #[case("kernel = 'x'\nkernel = 'y'", "line 2: kernel: duplicate key")]
    #[case("disk = ['a,wo']", "line 1: disk: unknown disk option \"wo\"")]
    #[case("disk = 'a,wo'", "line 1: disk: unknown disk option \"wo\"")]
    #[case("disk = [5]", "line 1: disk: write it in quotes, \"5\"")]
    #[case("disk = true", "line 1: disk: invalid value (boolean true): write a list of texts in quotes")]
    #[case("console = 'tty'", "line 1: console: unknown console \"tty\"")]
    #[case("kernel = 'x", "line 1: ")]
    fn errors_name_the_line_and_the_key(#[case] toml: &str, #[case] expected: &str) {
        let error = read_toml(toml).unwrap_err();
        assert!(error.contains(expected), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }

    #[test]
    fn a_long_key_or_value_makes_no_long_message() {
        let long = "k".repeat(100_000);
        let list = format!("cpus = [{}]", "[".repeat(20_000));
        for toml in [
            format!("{long} = 1"),
            format!("[{long}]"),
            format!("{long} = 1\n{long} = 2"),
            format!("memory = '{long}'"),
            format!("cpus = '{long}'"),
            long.clone(),
            list,
        ] {
            let error = read_toml(&toml).unwrap_err();
            assert!(
                error.len() < 2 * MAX_MESSAGE && error.lines().count() == 1,
                "{} bytes: {error}",
                error.len()
            );
        }
        let error = read_toml(&format!("{long} = 1")).unwrap_err();
        assert!(
            error.contains(&format!("unknown key \"{}…\"; the keys are name", &long[1..MAX_KEY])),
            "{error}"
        );
    }

    #[test]
    fn a_pipe_is_read_to_its_end() {
        use std::io::Write;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let writer = path.clone();
        let written = std::thread::spawn(move || {
            let mut pipe = File::create(writer).unwrap();
            // More than a pipe holds, so that it is read in several parts.
            pipe.write_all(format!("#{}\nkernel = 'vmlinux'\n", "x".repeat(200_000)).as_bytes()).unwrap();
        });
        let options = read(&path).unwrap();
        written.join().unwrap();
        assert_eq!(options.kernel, Some(directory.path().join("vmlinux")));
    }

    #[test]
    fn a_pipe_without_a_writer_is_waited_for_until_the_deadline() {
        let (reader, writer) = std::io::pipe().unwrap();
        let reader = File::from(std::os::fd::OwnedFd::from(reader));
        assert!(!becomes_readable(&reader, Instant::now()).unwrap());
        drop(writer);
        assert!(becomes_readable(&reader, Instant::now()).unwrap(), "its end is something to read");
    }
}
