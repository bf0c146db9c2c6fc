//! Containers that do not run.

use std::path::{Path, PathBuf};

use container::{MountOption, MountSource, Prepared, RunOptions, Storage, Visit};
use instance::{Archive, Identity, Instance, InstanceError, Kept, VolumeDriver, VolumeError, Volumes};
use vmm::Split;

use crate::chain;
use crate::run::{Means, prepare};
use crate::targets;

/// What a container has mounted while it runs, and not in the VM that has its root meanwhile.
pub struct Absent {
    /// Where it has it.
    target: PathBuf,
    /// Why it is not there, and what to do about it.
    why: &'static str,
}

impl Absent {
    /// Why `path`, in its shortest form, can't be reached, if it is in there.
    pub fn refuse(&self, path: &Path) -> Option<&'static str> {
        path.starts_with(&self.target).then_some(self.why)
    }
}

const FORWARDED: &str = "is a socket of this host, which the container has while it runs only";
const TEMPORARY: &str = "is in a temporary file system, which the container has while it runs only";
const GONE: &str = "is in a folder or file of this host that does not exist any more";
const BUSY: &str = "is in a volume that another container has: stop that container, or copy from it";
const NO_VOLUME: &str = "is in a volume that does not exist any more";
const NO_VIRTIOFSD: &str =
    "is in a folder of this host, which takes virtiofsd: `mvm doctor` says how to install it";

/// A VM with the root of a container that does not run, and what is not in it. It has the container's volumes and
/// folders where it is `with_mounts`.
///
/// # Errors
///
/// A line for the user, behind the container's name.
pub fn visit(kept: &Kept, with_mounts: bool) -> Result<(Visit, Vec<Absent>), String> {
    if kept.is_saved() {
        return Err(chain(&targets::Failure::Saved));
    }
    let (order, means) = prepare(kept).map_err(|failure| chain(&failure))?;
    if container::storage(&order.options) == Storage::Memory {
        return Err(
            "its changes were in memory, and went with its end: what is left of it is its image, as in \
                    `mvm create` and `mvm cp`"
                .into(),
        );
    }
    let said = |error: InstanceError| chain(&error);
    let archive = Archive::of_user().map_err(said)?;
    let keep = archive.take(&kept.entry.id).map_err(said)?;
    let keep = keep.ok_or("it has just been started, or its files are being copied: try again")?;
    let Means { assets, image, hold, .. } = means;
    let mut options = RunOptions { mounts: Vec::new(), ..order.options.clone() };
    let (mut absent, mut mounts) = (Vec::new(), Prepared::default());
    if with_mounts {
        let volumes = Volumes::of_user().map_err(said)?;
        (options.mounts, absent) = divide(&order.options, &volumes, vmm::has_shared_folders());
        let prepared = container::prepare(&assets, &options, &volumes);
        mounts = prepared.map_err(|error| format!("cannot reach its files: {}", chain(&error)))?;
    }
    let identity =
        Identity { id: Some(kept.entry.id.clone()), name: kept.entry.name.clone(), directory: None };
    let instance = Instance::claim(&identity, order.summary(&assets)).map_err(said)?;
    let split = Split { until_open: Box::new(hold), leave: Box::new(|| {}) };
    let visit = Visit::start((&assets, &image, &options), mounts, instance, keep, split);
    let visit = visit.map_err(|error| format!("cannot reach its files: {}", chain(&error)))?;
    Ok((visit, absent))
}

/// What of a container's mounts can be there while it does not run, and what can't.
fn divide(options: &RunOptions, volumes: &Volumes, can_share: bool) -> (Vec<MountOption>, Vec<Absent>) {
    let (mut there, mut absent) = (Vec::new(), Vec::new());
    let temporary = options.tmpfs.iter().map(|(target, _)| target.as_str());
    let temporary: Vec<&str> = temporary.chain(["/dev", "/proc", "/sys"]).collect();
    for mount in &options.mounts {
        let is_below = |target: &&str| Path::new(&mount.target).starts_with(target);
        let why =
            if temporary.iter().any(is_below) { Some(TEMPORARY) } else { reason(mount, volumes, can_share) };
        match why {
            Some(why) => absent.push(Absent { target: PathBuf::from(&mount.target), why }),
            None => there.push(mount.clone()),
        }
    }
    let own = options.tmpfs.iter().map(|(target, _)| Absent { target: target.into(), why: TEMPORARY });
    absent.extend(own);
    // What is mounted below what is not there is not there either, and what it would be mounted on may be missing.
    there.retain(|mount| {
        let outer = absent.iter().find(|absent| Path::new(&mount.target).starts_with(&absent.target));
        outer.is_none()
    });
    (there, absent)
}

/// Why a mount is not there while the container does not run.
fn reason(mount: &MountOption, volumes: &Volumes, can_share: bool) -> Option<&'static str> {
    match &mount.source {
        MountSource::Tmpfs(_) => Some(TEMPORARY),
        MountSource::Bind { path, .. } => match path.metadata() {
            Ok(found) if found.is_dir() || found.is_file() => (!can_share).then_some(NO_VIRTIOFSD),
            Ok(_) => Some(FORWARDED),
            Err(_) => Some(GONE),
        },
        MountSource::Volume(volume) => {
            let name = volume.name.as_ref()?;
            match volumes.find(name) {
                Ok(found) if found.record.driver == VolumeDriver::Shared => {
                    return (!can_share).then_some(NO_VIRTIOFSD);
                }
                Ok(_) => {}
                Err(_) => return Some(NO_VOLUME),
            }
            // It is held again for as long as it is used.
            matches!(volumes.hold(name), Err(VolumeError::Busy(_))).then_some(BUSY)
        }
    }
}

#[cfg(test)]
mod tests {
    use container::ShortMount;
    use instance::VolumeRecord;

    use super::*;

    fn volume(volumes: &Volumes, name: &str, driver: VolumeDriver) {
        let record = VolumeRecord { ..container::volume_record(&name.parse().unwrap(), driver) };
        volumes.create(&record, |path| std::fs::write(path, "")).unwrap();
    }

    #[test]
    fn what_is_not_there_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let volumes = Volumes::beside(directory.path());
        volume(&volumes, "disk", VolumeDriver::Local);
        volume(&volumes, "pool", VolumeDriver::Shared);
        volume(&volumes, "busy", VolumeDriver::Local);
        let _held = volumes.hold(&"busy".parse().unwrap()).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(directory.path().join("socket")).unwrap();
        let path = directory.path().to_str().unwrap();
        let texts = [
            "disk:/disk".to_owned(),
            "pool:/pool:ro".into(),
            "busy:/busy".into(),
            "disk:/busy/below".into(),
            "none:/none".into(),
            format!("{path}:/folder"),
            format!("{path}/socket:/run/socket"),
            format!("{path}/nothing:/nothing"),
            format!("{path}:/t/below"),
            format!("{path}:/dev/shm/below"),
        ];
        let mounts = texts.iter().map(|text| text.parse::<ShortMount>().unwrap().mount).collect();
        let options =
            RunOptions { mounts, tmpfs: vec![("/t".into(), String::new())], ..RunOptions::default() };
        let (there, absent) = divide(&options, &volumes, true);
        let targets: Vec<&str> = there.iter().map(|mount| mount.target.as_str()).collect();
        assert_eq!(targets, ["/disk", "/pool", "/folder"]);
        let why = |path: &str| absent.iter().find_map(|absent| absent.refuse(Path::new(path)));
        let cases = [
            ("/busy/x", Some(BUSY)),
            ("/busy/below/x", Some(BUSY)),
            ("/none", Some(NO_VOLUME)),
            ("/nothing/x", Some(GONE)),
            ("/run/socket", Some(FORWARDED)),
            ("/t/x", Some(TEMPORARY)),
            ("/t/below", Some(TEMPORARY)),
            ("/dev/shm/below", Some(TEMPORARY)),
            ("/disk/x", None),
            ("/run", None),
            ("/busyness", None),
        ];
        for (path, expected) in cases {
            assert_eq!(why(path), expected, "{path}");
        }
        let (there, absent) = divide(&options, &volumes, false);
        assert_eq!(there.len(), 1);
        let refused = absent.iter().filter(|absent| absent.why == NO_VIRTIOFSD).count();
        assert_eq!(refused, 2);
    }
}
