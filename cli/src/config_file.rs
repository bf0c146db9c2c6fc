//! The configuration file of `mvm boot`.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;
use vmm::{ConsoleConfig, DiskConfig, GdbConfig, PmemConfig, ShareConfig, VhostUserConfig};

use crate::options::BootOptions;

/// The largest file that is read, in bytes.
const MAX_SIZE: u64 = 1 << 20;

/// Why a configuration file is not accepted.
#[derive(Debug, Error)]
pub enum ConfigFileError {
    #[error("cannot read the configuration {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
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
    let mut options: BootOptions = toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let line = text.get(..at).unwrap_or_default().matches('\n').count() + 1;
        // The error's own display has an excerpt of the file in it.
        let message = error.message().lines().collect::<Vec<_>>().join("; ");
        let message = in_our_words(&message, text.lines().nth(line.saturating_sub(1)).unwrap_or_default());
        ConfigFileError::Parse { path: path.to_owned(), line, message }
    })?;
    let directory = path.parent().unwrap_or(Path::new(""));
    let place = |path: &mut PathBuf| *path = directory.join(&*path);
    options.kernel.as_mut().map(place);
    options.initrd.as_mut().map(place);
    for DiskConfig { path, .. } in options.rootfs.iter_mut().chain(&mut options.disk) {
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

/// The `message` of the TOML library about `line`, in this program's words: with the key, and without Rust's types.
fn in_our_words(message: &str, line: &str) -> String {
    if let Some(rest) = message.strip_prefix("unknown field ") {
        let (key, known) = rest.split_once(", expected ").unwrap_or((rest, ""));
        let known = known.trim_start_matches("one of ").replace('`', "");
        return format!("unknown key {:?}; the keys are {known}", key.trim_matches('`'));
    }
    if let Some(rest) = message.strip_prefix("duplicate field ") {
        return format!("the key {:?} is given twice", rest.trim_matches('`'));
    }
    // A line of a table has its name in brackets.
    let table = line.trim().strip_prefix('[').map(|name| name.trim_matches(['[', ']']));
    let key = line.split_once('=').map(|(key, _)| key).or(table).map(str::trim);
    match (key, message.strip_prefix("invalid type: ")) {
        (Some(key), Some(rest)) => {
            let (found, expected) = rest.split_once(", expected ").unwrap_or((rest, "another"));
            let found = found.replace('`', "").replace("map", "table").replace("sequence", "list");
            format!("{key}: invalid value ({found}): write {expected}")
        }
        (Some(key), None) if !key.is_empty() && !message.contains("TOML") => format!("{key}: {message}"),
        (_, _) => message.to_owned(),
    }
}

fn read_text(path: &Path) -> Result<String, ConfigFileError> {
    use std::io::Read;
    let error = |source| ConfigFileError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(error)?;
    file.take(MAX_SIZE + 1).read_to_string(&mut text).map_err(error)?;
    if text.len() as u64 > MAX_SIZE {
        return Err(ConfigFileError::TooLarge(path.to_owned()));
    }
    Ok(text)
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
        assert_eq!(options.rootfs.unwrap().path, Path::new("/abs/root.img"));
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
}
