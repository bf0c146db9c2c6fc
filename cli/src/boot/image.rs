//! A VM whose root has an image's files: the agent's root is its first disk, and mounts the image with what takes its
//! changes. Both come behind the user's own disks, which have the names that they have with any other root.

use std::fs::{File, OpenOptions, remove_file};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use container::{Assets, Storage};
use image::Hold;
use vmm::{DiskConfig, ImageFormat, disk_name};

use crate::images::{self, PullPolicy, RegistryArguments};
use crate::options::BootOptions;
use crate::root_config::{ImageRoot, RootConfig};

/// What an image's VM needs until its disks are open.
pub struct Opened {
    /// The image, as it is shown.
    pub shown: String,
    /// Keeps the image's files there.
    _hold: Hold,
    /// Keeps the disk for changes that go with the VM, which has no name.
    _scratch: Option<File>,
}

/// Completes `options` where their root is an image, which is pulled where it is missing.
///
/// # Errors
///
/// A line for the user.
pub fn open(options: &mut BootOptions) -> Result<Option<Opened>, String> {
    let root = match options.rootfs.take() {
        Some(RootConfig::Image(root)) => root,
        other => {
            options.rootfs = other;
            return Ok(None);
        }
    };
    check(options)?;
    let assets = Assets::find().map_err(|error| error.to_string())?;
    let (image, hold) = images::open(&root.image, PullPolicy::Missing, RegistryArguments::default(), false)?;
    let (first, rest) =
        image.disk.split_first().ok_or_else(|| format!("the image {} has no files", root.image))?;
    let (changes, scratch) = changes(&assets, &root)?;
    options.rootfs = Some(RootConfig::Disk(disk(&assets.root, true)));
    // The disk of the root is the first one.
    let place = |disks: &[DiskConfig]| format!("/dev/{}", disk_name(disks.len().saturating_add(1)));
    let mut arguments = format!("rootfstype=erofs mvm.image={}", place(&options.disk));
    options.disk.push(DiskConfig { pieces: rest.to_vec(), ..disk(&first.path, true) });
    let kind = if scratch.is_some() { "scratch" } else { "disk" };
    match changes {
        Some(path) => {
            arguments += &format!(" mvm.changes={kind}:{}", place(&options.disk));
            options.disk.push(disk(&path, false));
        }
        None => arguments += " mvm.changes=memory",
    }
    if let Some(append) = &options.append {
        arguments = format!("{arguments} {append}");
    }
    options.append = Some(arguments);
    options.kernel.get_or_insert(assets.kernel);
    Ok(Some(Opened { shown: root.to_string(), _hold: hold, _scratch: scratch }))
}

/// Refuses what has no place with an image.
fn check(options: &BootOptions) -> Result<(), String> {
    if options.initrd.is_some() {
        return Err(
            "--initrd and --rootfs image: exclude each other: the image is mounted by mvm's agent".into()
        );
    }
    if options.cmdline.is_some() {
        return Err("--cmdline and --rootfs image: exclude each other: use --append".into());
    }
    let arguments = options.append.iter().flat_map(|append| append.split_whitespace());
    for argument in arguments {
        if let Some(init) = argument.strip_prefix("init=") {
            return Err(format!(
                "--append init=… is for the kernel, which does not know the image's files: use --append mvm.init={init}"
            ));
        }
    }
    Ok(())
}

fn disk(path: &Path, read_only: bool) -> DiskConfig {
    // What a guest wrote says nothing of the format.
    let format = if read_only { ImageFormat::Detect } else { ImageFormat::Raw };
    let (pieces, limits) = (Vec::new(), Default::default());
    DiskConfig { path: path.to_owned(), pieces, format, read_only, id: None, limits }
}

/// The disk for changes, if they go to one; and its file where that has no name.
fn changes(assets: &Assets, root: &ImageRoot) -> Result<(Option<PathBuf>, Option<File>), String> {
    let size = match root.storage.unwrap_or_default() {
        Storage::Memory => return Ok((None, None)),
        Storage::Disk(size) => size,
    };
    let Some(path) = &root.changes else {
        let file = scratch(assets, size).map_err(|error| {
            format!(
                "cannot make a disk for what the guest writes: {error}; use image:…,memory or changes=FILE"
            )
        })?;
        return Ok((Some(format!("/proc/self/fd/{}", file.as_raw_fd()).into()), Some(file)));
    };
    let cannot =
        |error: io::Error| format!("cannot use {} for what the guest writes: {error}", path.display());
    match OpenOptions::new().write(true).open(path) {
        Ok(file) => grow(&file, root.storage.map(|_| size)).map_err(cannot)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            container::create_changes(assets, path, size).map_err(cannot)?;
        }
        Err(error) => return Err(cannot(error)),
    }
    Ok((Some(path.clone()), None))
}

/// Makes a file that is there as large as the user says; the guest grows its file system.
fn grow(file: &File, size: Option<u64>) -> io::Result<()> {
    let length = file.metadata()?.len();
    match size {
        Some(size) if size < length => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("it has {length} bytes, and does not shrink to {size}: leave size= out"),
        )),
        Some(size) if size > length => file.set_len(size),
        _ => Ok(()),
    }
}

/// A disk in the directory of data that has no name any more, so that it goes with who has it open.
fn scratch(assets: &Assets, size: u64) -> io::Result<File> {
    let directory = instance::make_data_directory()?;
    let path = directory.join(format!(".scratch-{}", std::process::id()));
    // What a process of this number has left that was killed.
    let _ = remove_file(&path);
    container::create_changes(assets, &path, size)?;
    let file = OpenOptions::new().read(true).write(true).open(&path);
    remove_file(&path)?;
    file
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("initrd = 'x'", "--initrd and --rootfs image: exclude each other")]
    #[case("cmdline = 'x'", "use --append")]
    #[case("append = 'quiet init=/bin/sh'", "use --append mvm.init=/bin/sh")]
    fn what_has_no_place_with_an_image_is_refused(#[case] toml: &str, #[case] says: &str) {
        let mut options: BootOptions = toml::from_str(&format!("rootfs = 'image:x'\n{toml}")).unwrap();
        let line = open(&mut options).err().unwrap();
        assert!(line.contains(says) && !line.contains('\n'), "{line}");
    }

    #[test]
    fn other_roots_stay_as_they_are() {
        let mut options: BootOptions = toml::from_str("rootfs = 'x'\ninitrd = 'y'").unwrap();
        assert!(open(&mut options).unwrap().is_none());
        assert!(options.rootfs.is_some() && options.disk.is_empty() && options.append.is_none());
    }

    #[rstest]
    #[case(None, Some(4096))]
    #[case(Some(4096), Some(4096))]
    #[case(Some(8192), Some(8192))]
    #[case(Some(100), None)]
    fn a_file_that_is_there_grows_and_does_not_shrink(
        #[case] size: Option<u64>,
        #[case] expected: Option<u64>,
    ) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let grown = grow(&file, size);
        assert_eq!(grown.as_ref().ok().map(|()| file.metadata().unwrap().len()), expected, "{grown:?}");
    }
}
