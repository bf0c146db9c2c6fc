//! What of the host is needed for a container's mounts, and the mounts as the agent gets them.

use std::collections::HashSet;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use agent_protocol::{Mount, MountKind};
use instance::{VolumeDriver, VolumeHold, VolumeName, Volumes};
use rustix::process::geteuid;
use vmm::SharedPart;

use super::make::hold;
use super::{MountError, MountOption, MountSource, PrepareError, VolumeMount};
use crate::assets::Assets;
use crate::machine::{SHARE_TAG, room_for_volumes};
use crate::options::{RunOptions, Storage};
use crate::spec::storage;

/// The most mounts, of all kinds: an image may name very many volumes.
const MAX_MOUNTS: usize = 256;
/// The most folders and files of the host.
const MAX_PARTS: usize = 128;
/// The most sockets of the host.
const MAX_SOCKETS: usize = 16;
/// The vsock port of the host by which the first socket is reached.
const FIRST_SOCKET_PORT: u32 = 2000;
/// The longest path of a Unix socket.
pub(super) const MAX_SOCKET_PATH: usize = 107;
/// What a user of the host is in a VM that can't have that user.
const NOBODY: u32 = 65534;

/// A socket of the host that a container has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The vsock port of the host by which the agent reaches it.
    pub port: u32,
    /// Its path.
    pub path: PathBuf,
}

/// What of the host a container's mounts are made of.
#[derive(Default)]
pub struct Prepared {
    /// The mounts in the order in which they are made.
    pub(crate) mounts: Vec<Mount>,
    /// Folders and files.
    pub(crate) parts: Vec<SharedPart>,
    /// Disks, in the order of the VM.
    pub(crate) disks: Vec<PathBuf>,
    /// Sockets.
    pub(crate) sockets: Vec<Forward>,
    /// Volumes, which no other process removes or uses as long as this is there.
    pub(crate) holds: Vec<VolumeHold>,
    /// Volumes that the keeper of a pod puts into its VM: the devices of their mounts are their names before.
    pub(crate) in_pod: Vec<VolumeName>,
}

/// Makes what is missing on the host for the mounts of `options`, which are settled, and holds the volumes.
///
/// # Errors
///
/// [`PrepareError`]; volumes that were made stay.
pub fn prepare(assets: &Assets, options: &RunOptions, volumes: &Volumes) -> Result<Prepared, PrepareError> {
    prepare_holding(assets, options, volumes, Vec::new())
}

/// The same for a container for which some volumes are held already.
///
/// # Errors
///
/// As [`prepare`].
pub fn prepare_holding(
    assets: &Assets,
    options: &RunOptions,
    volumes: &Volumes,
    held: Vec<VolumeHold>,
) -> Result<Prepared, PrepareError> {
    check_room(options, volumes)?;
    let first_disk = match storage(options) {
        Storage::Memory => 2,
        Storage::Disk(_) => 3,
    };
    let prepared = Prepared { holds: held, ..Prepared::default() };
    prepare_with(prepared, options, Prepared::bind, |prepared, volume, read_only| {
        prepared.volume(assets, volumes, volume, read_only, first_disk)
    })
}

/// Adds the mounts of `options` to `prepared`, where `bind` says what is mounted for a path of the host, where a folder may be made, and
/// `volume` for a volume; both get whether it is read-only.
pub(super) fn prepare_with(
    mut prepared: Prepared,
    options: &RunOptions,
    mut bind: impl FnMut(&mut Prepared, &Path, bool, bool) -> Result<MountKind, PrepareError>,
    mut volume: impl FnMut(&mut Prepared, &VolumeMount, bool) -> Result<MountKind, PrepareError>,
) -> Result<Prepared, PrepareError> {
    if options.mounts.len() > MAX_MOUNTS {
        let asked = options.mounts.len();
        return Err(PrepareError::TooMany { what: "mounts", asked, most: MAX_MOUNTS, advice: "" });
    }
    let mut wanted: Vec<&MountOption> = options.mounts.iter().collect();
    // What is mounted below another one comes behind it.
    wanted.sort_by_key(|mount| mount.target.split('/').count());
    for mount in wanted {
        let kind = match &mount.source {
            MountSource::Bind { path, is_made } => bind(&mut prepared, path, *is_made, mount.read_only)?,
            MountSource::Volume(wanted) => volume(&mut prepared, wanted, mount.read_only)?,
            MountSource::Tmpfs(words) => {
                let tmpfs = super::Tmpfs::read(words)?;
                let read_only = if mount.read_only { libc::MS_RDONLY } else { 0 };
                let kind = MountKind::FileSystem("tmpfs".into());
                let flags = tmpfs.flags | read_only;
                prepared.mounts.push(Mount {
                    target: mount.target.clone(),
                    kind,
                    flags,
                    options: tmpfs.data,
                });
                continue;
            }
        };
        let flags = libc::MS_NODEV | if mount.read_only { libc::MS_RDONLY } else { 0 };
        prepared.mounts.push(Mount { target: mount.target.clone(), kind, flags, options: String::new() });
    }
    check_parts(prepared.parts.len())?;
    check_sockets(prepared.sockets.len())?;
    Ok(prepared)
}

fn name_of(mount: &MountOption) -> Option<&VolumeName> {
    match &mount.source {
        MountSource::Volume(volume) => volume.name.as_ref(),
        _ => None,
    }
}

/// Refuses more volumes than a VM of the container's own has room for, before any of them is made.
///
/// # Errors
///
/// [`PrepareError::TooMany`].
pub fn check_room(options: &RunOptions, volumes: &Volumes) -> Result<(), PrepareError> {
    let is_disk = |mount: &&MountOption| {
        let MountSource::Volume(wanted) = &mount.source else { return false };
        let known = wanted.name.as_ref().and_then(|name| volumes.find(name).ok());
        known.map_or(wanted.driver, |volume| volume.record.driver) == VolumeDriver::Local
    };
    let names: HashSet<_> = options.mounts.iter().filter(is_disk).filter_map(name_of).collect();
    let asked = names.len();
    let shares = options.mounts.iter().any(|mount| match &mount.source {
        MountSource::Bind { .. } => true,
        MountSource::Volume(_) => !is_disk(&mount),
        MountSource::Tmpfs(_) => false,
    });
    let most = room_for_volumes(options, shares);
    let advice = ": each is a disk of its VM; use folders, or volumes of `mvm volume create --driver shared`";
    if asked > most { Err(PrepareError::TooMany { what: "volumes", asked, most, advice }) } else { Ok(()) }
}

impl Prepared {
    /// A folder, file or socket of the host.
    fn bind(&mut self, path: &Path, is_made: bool, read_only: bool) -> Result<MountKind, PrepareError> {
        let metadata = look_at(path, is_made)?;
        if metadata.file_type().is_socket() {
            return self.socket(path, &metadata);
        }
        Ok(self.part(path, read_only, false))
    }

    fn part(&mut self, path: &Path, read_only: bool, fills: bool) -> MountKind {
        let name = self.parts.len().to_string();
        self.parts.push(SharedPart { name: name.clone(), path: path.to_owned(), read_only });
        MountKind::Part { tag: SHARE_TAG.to_owned(), name, fills }
    }

    /// A socket of the host.
    pub(super) fn socket(&mut self, path: &Path, metadata: &Metadata) -> Result<MountKind, PrepareError> {
        if path.as_os_str().len() > MAX_SOCKET_PATH {
            return Err(PrepareError::LongSocket(path.to_owned()));
        }
        let number = u32::try_from(self.sockets.len()).unwrap_or(u32::MAX);
        let port = FIRST_SOCKET_PORT.saturating_add(number);
        self.sockets.push(Forward { port, path: path.to_owned() });
        let mode = metadata.permissions().mode() & 0o777;
        let (user, group) = match geteuid() {
            own if own.is_root() => (metadata.uid(), metadata.gid()),
            // As in a shared folder: this user is the VM's root.
            own if own.as_raw() == metadata.uid() => (0, 0),
            _ => (NOBODY, NOBODY),
        };
        Ok(MountKind::Socket { port, mode, user, group })
    }

    fn volume(
        &mut self,
        assets: &Assets,
        volumes: &Volumes,
        wanted: &VolumeMount,
        read_only: bool,
        first_disk: usize,
    ) -> Result<MountKind, PrepareError> {
        let Some(name) = &wanted.name else { return Err(MountError::Short(String::new()).into()) };
        let fills = !wanted.is_empty;
        // One volume may be in several places.
        let known = self.holds.iter().find(|hold| hold.volume.record.name == *name);
        let volume = match known {
            Some(hold) => hold.volume.clone(),
            None => {
                let hold = hold(assets, volumes, name, wanted)?;
                let volume = hold.volume.clone();
                self.holds.push(hold);
                volume
            }
        };
        let content = volume.content();
        if volume.record.driver == VolumeDriver::Shared {
            let Some(path) = &wanted.subpath else {
                // What the image has there is written to it by the VM.
                return Ok(self.part(&content, read_only && !fills, fills));
            };
            let kind = self.part(&content, read_only, false);
            return Ok(match kind {
                MountKind::Part { tag, name, .. } => MountKind::Below { tag, name, path: path.clone() },
                other => other,
            });
        }
        let number = self.disks.iter().position(|disk| *disk == content).unwrap_or_else(|| {
            self.disks.push(content);
            self.disks.len().saturating_sub(1)
        });
        let device = format!("/dev/{}", vmm::disk_name(first_disk.saturating_add(number)));
        Ok(match &wanted.subpath {
            None => MountKind::Disk { device, fills },
            // It exists already, and keeps what it has.
            Some(path) => MountKind::DiskBelow { device, path: path.clone() },
        })
    }
}

fn too_many(what: &'static str, asked: usize, most: usize) -> Result<(), PrepareError> {
    match asked > most {
        true => Err(PrepareError::TooMany { what, asked, most, advice: "" }),
        false => Ok(()),
    }
}

/// Refuses more folders and files than can be served.
pub(super) fn check_parts(asked: usize) -> Result<(), PrepareError> {
    too_many("folders and files", asked, MAX_PARTS)
}

/// Refuses more sockets than can be served.
pub(super) fn check_sockets(asked: usize) -> Result<(), PrepareError> {
    too_many("sockets", asked, MAX_SOCKETS)
}

/// What is at `path`: a folder, which is made there where there is nothing and it `is_made`, a file or a socket.
pub(super) fn look_at(path: &Path, is_made: bool) -> Result<Metadata, PrepareError> {
    let error = |doing| move |source| PrepareError::Path { doing, path: path.to_owned(), source };
    let metadata = match path.metadata() {
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => {
            if !is_made {
                return Err(PrepareError::Missing(path.to_owned()));
            }
            fs::create_dir_all(path).map_err(error("make the folder"))?;
            path.metadata()
        }
        found => found,
    };
    let metadata = metadata.map_err(error("look at"))?;
    let kind = metadata.file_type();
    if kind.is_dir() || kind.is_file() || kind.is_socket() {
        return Ok(metadata);
    }
    let kind = if kind.is_fifo() { "a FIFO" } else { "a device" };
    Err(PrepareError::Kind { path: path.to_owned(), kind })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use tempfile::TempDir;

    use super::super::{ShortMount, settle};
    use super::super::{create, record};
    use super::*;
    use crate::image::ImageConfig;

    /// A template of 256 MiB that is empty, and a directory for volumes.
    struct Host {
        directory: TempDir,
        assets: Assets,
    }

    impl Host {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let changes = directory.path().join("templates");
            let numbers = [256 << 20, 1024, 1_u64].map(u64::to_le_bytes).concat();
            fs::write(&changes, [b"mvm-ext4", &*numbers, b"x"].concat()).unwrap();
            Self { directory, assets: Assets { kernel: "".into(), root: "".into(), changes } }
        }

        fn path(&self, name: &str) -> String {
            self.directory.path().join(name).to_str().unwrap().to_owned()
        }

        fn volumes(&self) -> Volumes {
            Volumes::beside(self.directory.path())
        }

        fn prepare(&self, mounts: &[&str]) -> Result<Prepared, PrepareError> {
            let mounts = mounts.iter().map(|text| text.parse::<ShortMount>().unwrap().mount).collect();
            let mut options = RunOptions { mounts, ..RunOptions::default() };
            settle(&mut options, &ImageConfig::default()).unwrap();
            prepare(&self.assets, &options, &self.volumes())
        }
    }

    fn said(prepared: Result<Prepared, PrepareError>) -> String {
        prepared.err().unwrap().to_string()
    }

    #[test]
    fn mounts_are_parts_disks_and_sockets_in_the_order_of_their_depth() {
        let host = Host::new();
        fs::write(host.path("file"), "").unwrap();
        let _socket = UnixListener::bind(host.path("socket")).unwrap();
        let prepared = host.prepare(&[
            &format!("{}:/a/b/c:ro", host.path("made/folder")),
            &format!("{}:/file", host.path("file")),
            &format!("{}:/run/socket", host.path("socket")),
            "data:/a",
            "data:/other:ro",
            "/anonymous",
        ]);
        let prepared = prepared.unwrap();
        let targets: Vec<_> = prepared.mounts.iter().map(|mount| mount.target.as_str()).collect();
        assert_eq!(targets, ["/file", "/a", "/other", "/anonymous", "/run/socket", "/a/b/c"]);
        assert!(Path::new(&host.path("made/folder")).is_dir());
        let kinds: Vec<_> = prepared.mounts.iter().map(|mount| &mount.kind).collect();
        let disk = |device: &str| MountKind::Disk { device: device.into(), fills: true };
        assert_eq!(kinds[1..4], [&disk("/dev/vdd"), &disk("/dev/vdd"), &disk("/dev/vde")]);
        assert!(matches!(kinds[4], MountKind::Socket { port: 2000, .. }));
        assert_eq!((prepared.parts.len(), prepared.disks.len(), prepared.holds.len()), (2, 2, 2));
        let read_only: Vec<_> =
            prepared.mounts.iter().map(|mount| mount.flags & libc::MS_RDONLY != 0).collect();
        assert_eq!(read_only, [false, false, true, false, false, true]);
        assert!(!prepared.parts[0].read_only && prepared.parts[1].read_only);
    }

    #[test]
    fn a_second_container_does_not_get_the_disk_and_gets_a_shared_volume() {
        let host = Host::new();
        let shared = instance::VolumeRecord {
            driver: VolumeDriver::Shared,
            ..record(&"pool".parse().unwrap(), VolumeDriver::Shared)
        };
        assert!(create(&host.assets, &host.volumes(), &shared).unwrap());
        let first = host.prepare(&["data:/a", "pool:/b"]).unwrap();
        assert!(said(host.prepare(&["data:/a"])).contains("volume data is in use by another container"));
        let second = host.prepare(&["pool:/b"]).unwrap();
        assert_eq!((second.parts.len(), second.disks.len()), (1, 0));
        drop(first);
        host.prepare(&["data:/a"]).unwrap();
        // One that is held for it already.
        let own = record(&"own".parse().unwrap(), VolumeDriver::Local);
        let held = host.volumes().create_held(&own, |path| fs::write(path, "x")).unwrap();
        assert!(said(host.prepare(&["own:/a"])).contains("volume own is in use"));
        let mut options = RunOptions::default();
        options.mounts.push("own:/a".parse::<ShortMount>().unwrap().mount);
        settle(&mut options, &ImageConfig::default()).unwrap();
        let third = prepare_holding(&host.assets, &options, &host.volumes(), vec![held]).unwrap();
        assert_eq!((third.disks.len(), third.holds.len()), (1, 1));
        assert!(host.volumes().create_held(&own, |_| Ok(())).is_err());
        assert_eq!(fs::read(&third.disks[0]).unwrap(), b"x");
    }

    #[test]
    fn what_cannot_be_mounted_is_said() {
        let host = Host::new();
        assert!(said(host.prepare(&["/dev/null:/x"])).contains("/dev/null: it is a device"));
        rustix::fs::mknodat(
            rustix::fs::CWD,
            host.path("fifo"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        assert!(said(host.prepare(&[&format!("{}:/x", host.path("fifo"))])).contains("it is a FIFO"));
        fs::write(host.path("file"), "").unwrap();
        let below = format!("{}/x:/x", host.path("file"));
        assert!(said(host.prepare(&[&below])).contains("cannot look at"));
        let missing = MountOption {
            target: "/x".into(),
            read_only: false,
            source: MountSource::Bind { path: host.path("missing").into(), is_made: false },
        };
        let options = RunOptions { mounts: vec![missing], ..RunOptions::default() };
        let error = said(prepare(&host.assets, &options, &host.volumes()));
        assert!(error.contains("bind source path does not exist: ") && error.contains("/missing"), "{error}");
    }

    #[test]
    fn more_than_there_is_room_for_is_refused_before_anything_is_made() {
        let host = Host::new();
        let many: Vec<String> = (10..30).map(|number| format!("v{number}:/v{number}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let error = said(host.prepare(&many));
        assert!(
            error.contains("20 volumes are more than the 12 that a container can have: each is a disk"),
            "{error}"
        );
        assert!(host.volumes().all().unwrap().0.is_empty());
        host.prepare(&many[..12]).unwrap();
        let folders: Vec<String> = (0..129).map(|number| format!("/usr:/f{number}")).collect();
        let folders: Vec<&str> = folders.iter().map(String::as_str).collect();
        assert!(said(host.prepare(&folders)).contains("129 folders and files are more than the 128"));
        host.prepare(&folders[..128]).unwrap();
    }
}
