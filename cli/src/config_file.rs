//! The configuration file of `mvm boot`.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;
use vmm::{ConsoleConfig, DiskConfig, GdbConfig, PmemConfig, ShareConfig, VhostUserConfig};

use crate::options::BootOptions;

/// A configuration is a few lines; this bounds what a wrong path makes mvm read.
const MAX_SIZE: u64 = 1 << 20;

/// Why a configuration file can't be used.
#[derive(Debug, Error)]
pub enum ConfigFileError {
    #[error("cannot read the configuration {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the configuration {} is larger than 1 MiB: is it the right file?", .0.display())]
    TooLarge(PathBuf),
    #[error("the configuration {}, line {line}: {message}", path.display())]
    Parse { path: PathBuf, line: usize, message: String },
}

/// Reads the file at `path`. Relative paths in it are relative to its own directory, so that a VM's directory
/// can be moved.
pub fn read(path: &Path) -> Result<BootOptions, ConfigFileError> {
    parse(&read_text(path)?, path)
}

/// Takes `text` as what is in the file at `path`.
pub fn parse(text: &str, path: &Path) -> Result<BootOptions, ConfigFileError> {
    let mut options: BootOptions = toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let line = text.get(..at).unwrap_or_default().matches('\n').count() + 1;
        // The whole message has the lines of the file drawn into it.
        let message = error.message().lines().collect::<Vec<_>>().join("; ");
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
    #[case("kernel = 'x'\nkernal = 'y'\n", "line 2: unknown field `kernal`")]
    #[case("kernel = 'x'\n\nmemory = 'much'", "line 3: \"much\" is not a size")]
    #[case("cpus = 'two'", "line 1: invalid type")]
    #[case("disk = ['a,ro']", "line 1: \"ro\" is no option of a disk")]
    #[case("kernel = 'x", "line 1: ")]
    fn what_is_wrong_is_said_with_its_line(#[case] toml: &str, #[case] expected: &str) {
        let error = read_toml(toml).unwrap_err();
        assert!(error.contains(expected), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}
