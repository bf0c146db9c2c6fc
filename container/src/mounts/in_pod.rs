//! What the containers of a pod mount: folders and volumes that the pod's VM has from its start, and volumes that are
//! put into it as disks.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use agent_protocol::MountKind;
use instance::{VolumeDriver, VolumeError, VolumeHold, VolumeName, Volumes};
use serde::{Deserialize, Serialize};
use vmm::SharedPart;

use super::prepare::{check_parts, look_at, prepare_with};
use super::short::{host_path, is_path};
use super::{MountError, MountOption, PrepareError, Prepared, ShortMount, VolumeMount};
use crate::machine::SHARE_TAG;
use crate::options::RunOptions;

/// What the VM of a pod has of the host for its containers to mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodFolder {
    /// What it is.
    pub source: PodSource,
    /// They can only read it.
    #[serde(default)]
    pub read_only: bool,
}

/// Where a [`PodFolder`] is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PodSource {
    /// A folder or file of the host.
    Path(PathBuf),
    /// A volume of the driver `shared`.
    Volume(VolumeName),
}

/// What `-v` of `mvm pod create` asks for: `HOSTPATH` or `NAME`, for containers to mount, or with `:PATH` as of `mvm
/// run`, for all of them to have it there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodVolume {
    /// Containers can mount it.
    Folder(PodFolder),
    /// They have it.
    Mount(MountOption),
}

impl FromStr for PodVolume {
    type Err = MountError;

    fn from_str(text: &str) -> Result<Self, MountError> {
        let (rest, read_only) = match text.rsplit_once(':') {
            Some((rest, "ro")) => (rest, true),
            Some((rest, "rw")) => (rest, false),
            _ => (text, false),
        };
        if rest.is_empty() || rest.contains(":/") || text.contains('\0') {
            return Ok(Self::Mount(text.parse::<ShortMount>()?.mount));
        }
        let source = match is_path(rest) {
            true => PodSource::Path(host_path(rest)),
            false => PodSource::Volume(rest.parse()?),
        };
        Ok(Self::Folder(PodFolder { source, read_only }))
    }
}

/// The folders of a pod, for its VM.
#[derive(Default)]
pub struct PodFolders {
    pub(crate) parts: Vec<SharedPart>,
    /// Its volumes, which others do not remove as long as this is there.
    _holds: Vec<VolumeHold>,
}

impl PodFolders {
    /// Looks at `folders`; those of the host that are missing are made.
    ///
    /// # Errors
    ///
    /// [`PrepareError`].
    pub fn open(folders: &[PodFolder], volumes: &Volumes) -> Result<Self, PrepareError> {
        let mut opened = Self::default();
        for (number, PodFolder { source, read_only }) in folders.iter().enumerate() {
            let path = match source {
                PodSource::Path(path) => {
                    if look_at(path, true)?.file_type().is_socket() {
                        return Err(PrepareError::SocketOfPod(path.clone()));
                    }
                    path.clone()
                }
                PodSource::Volume(name) => {
                    if volumes.find(name)?.record.driver != VolumeDriver::Shared {
                        return Err(PrepareError::DiskOfPod(name.clone()));
                    }
                    let hold = volumes.hold(name)?;
                    let path = hold.volume.content();
                    opened._holds.push(hold);
                    path
                }
            };
            opened.parts.push(SharedPart { name: number.to_string(), path, read_only: *read_only });
        }
        check_parts(opened.parts.len())?;
        Ok(opened)
    }
}

/// What is needed of the mounts of `options`, which are settled, for a container of a pod whose VM has `folders`.
///
/// # Errors
///
/// [`PrepareError`].
pub fn prepare_in_pod(
    options: &RunOptions,
    folders: &[PodFolder],
    volumes: &Volumes,
) -> Result<Prepared, PrepareError> {
    let bind = |prepared: &mut Prepared, path: &Path, is_made: bool, read_only: bool| {
        let not_in_pod = || PrepareError::NotInPod(path.to_owned());
        let found = FolderOfPod::find(folders, path, volumes);
        let metadata = match look_at(path, is_made && found.is_some()) {
            // None is made where the pod does not have it.
            Err(PrepareError::Missing(_)) if is_made => return Err(not_in_pod()),
            looked => looked?,
        };
        if metadata.file_type().is_socket() {
            return prepared.socket(path, &metadata);
        }
        let found = found.ok_or_else(not_in_pod)?;
        match found.read_only && !read_only {
            true => Err(PrepareError::ReadOnlyInPod(path.display().to_string())),
            false => found.mount(),
        }
    };
    let volume = |prepared: &mut Prepared, wanted: &VolumeMount, read_only: bool| {
        prepared.volume_in_pod(folders, volumes, wanted, read_only)
    };
    prepare_with(Prepared::default(), options, bind, volume)
}

/// Something in a folder of a pod.
struct FolderOfPod {
    name: String,
    read_only: bool,
    /// Where in the folder.
    below: PathBuf,
}

impl FolderOfPod {
    /// The folder that `path`, which need not be there, is in: the one that is nearest to it.
    fn find(folders: &[PodFolder], path: &Path, volumes: &Volumes) -> Option<Self> {
        let path = resolved(path)?;
        let found = folders.iter().enumerate().filter_map(|(number, folder)| {
            let top = match &folder.source {
                PodSource::Path(path) => path.canonicalize().ok()?,
                PodSource::Volume(name) => {
                    volumes.content_of(name, VolumeDriver::Shared).canonicalize().ok()?
                }
            };
            let below = path.strip_prefix(&top).ok()?.to_owned();
            Some(Self { name: number.to_string(), read_only: folder.read_only, below })
        });
        found.min_by_key(|found| (found.below.components().count(), found.read_only))
    }

    fn mount(self) -> Result<MountKind, PrepareError> {
        let (tag, name) = (SHARE_TAG.to_owned(), self.name);
        if self.below.as_os_str().is_empty() {
            return Ok(MountKind::Part { tag, name, fills: false });
        }
        match self.below.into_os_string().into_string() {
            Ok(path) => Ok(MountKind::Below { tag, name, path }),
            Err(path) => Err(PrepareError::NotText(path.into())),
        }
    }
}

/// `path` without links, as far as there is something.
fn resolved(path: &Path) -> Option<PathBuf> {
    let mut missing = Vec::new();
    let mut here = path;
    loop {
        match here.canonicalize() {
            Ok(found) => return Some(missing.iter().rev().fold(found, |path, name| path.join(name))),
            Err(_) => {
                missing.push(here.file_name()?);
                here = here.parent()?;
            }
        }
    }
}

impl Prepared {
    fn volume_in_pod(
        &mut self,
        folders: &[PodFolder],
        volumes: &Volumes,
        wanted: &VolumeMount,
        read_only: bool,
    ) -> Result<MountKind, PrepareError> {
        let Some(name) = &wanted.name else { return Err(MountError::Short(String::new()).into()) };
        let fills = !wanted.is_empty;
        let driver = match volumes.find(name) {
            Ok(volume) => volume.record.driver,
            Err(VolumeError::NotFound(_)) => wanted.driver,
            Err(error) => return Err(error.into()),
        };
        if driver == VolumeDriver::Local {
            if !self.in_pod.contains(name) {
                self.in_pod.push(name.clone());
            }
            return Ok(MountKind::Disk { device: name.to_string(), fills });
        }
        let mut of_pod = folders.iter().enumerate();
        let found =
            of_pod.find(|(_, folder)| matches!(&folder.source, PodSource::Volume(known) if known == name));
        let (number, folder) = found.ok_or_else(|| PrepareError::VolumeNotInPod(name.clone()))?;
        if folder.read_only && !read_only {
            return Err(PrepareError::ReadOnlyInPod(format!("volume {name}")));
        }
        self.holds.push(volumes.hold(name)?);
        let fills = fills && !folder.read_only;
        Ok(MountKind::Part { tag: SHARE_TAG.to_owned(), name: number.to_string(), fills })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::UnixListener;

    use rstest::rstest;
    use tempfile::TempDir;

    use super::super::{record, settle};
    use super::*;
    use crate::image::ImageConfig;

    fn folder(path: &str, read_only: bool) -> PodVolume {
        PodVolume::Folder(PodFolder { source: PodSource::Path(path.into()), read_only })
    }

    #[rstest]
    #[case("/src", folder("/src", false))]
    #[case("/src:ro", folder("/src", true))]
    #[case("/a:b:rw", folder("/a:b", false))]
    #[case("pool:ro", PodVolume::Folder(PodFolder { source: PodSource::Volume("pool".parse().unwrap()), read_only: true }))]
    #[case("/src:/x:ro", PodVolume::Mount("/src:/x:ro".parse::<ShortMount>().unwrap().mount))]
    #[case("data:/x", PodVolume::Mount("data:/x".parse::<ShortMount>().unwrap().mount))]
    fn what_a_pod_names_is_read(#[case] text: &str, #[case] expected: PodVolume) {
        assert_eq!(text.parse(), Ok(expected));
    }

    #[rstest]
    #[case("")]
    #[case(":ro")]
    #[case("x")]
    #[case("a/b")]
    #[case("/a:/b:bogus")]
    #[case("/a:/")]
    #[case("/a\0")]
    fn what_it_cannot_name_is_refused(#[case] text: &str) {
        text.parse::<PodVolume>().unwrap_err();
    }

    /// A directory with folders, and the volumes `pool`, `closed` and `disk`.
    struct Host(TempDir);

    impl Host {
        fn new() -> Self {
            let host = Self(TempDir::new().unwrap());
            for path in ["src/app", "conf", "other"] {
                fs::create_dir_all(host.path(path)).unwrap();
            }
            fs::write(host.path("src/app/file"), "").unwrap();
            std::os::unix::fs::symlink(host.path("other"), host.path("src/out")).unwrap();
            std::os::unix::fs::symlink("app", host.path("src/in")).unwrap();
            let volumes = [
                ("pool", VolumeDriver::Shared),
                ("closed", VolumeDriver::Shared),
                ("disk", VolumeDriver::Local),
            ];
            for (name, driver) in volumes {
                let record = record(&name.parse().unwrap(), driver);
                host.volumes().create(&record, |path| fs::create_dir(path)).unwrap();
            }
            host
        }

        fn path(&self, name: &str) -> String {
            self.0.path().join(name).to_str().unwrap().to_owned()
        }

        fn volumes(&self) -> Volumes {
            Volumes::beside(self.0.path())
        }

        fn folders(&self) -> Vec<PodFolder> {
            let named =
                [self.path("src"), format!("{}:ro", self.path("conf")), "pool".into(), "closed:ro".into()];
            let folder = |text: &String| match text.parse().unwrap() {
                PodVolume::Folder(folder) => folder,
                PodVolume::Mount(mount) => panic!("{mount:?}"),
            };
            named.iter().map(folder).collect()
        }

        /// What becomes of `-v` with `HOST` in place of this directory.
        fn prepare(&self, mounts: &[&str]) -> Result<Prepared, String> {
            let mount =
                |text: &&str| text.replace("HOST", &self.path("")).parse::<ShortMount>().unwrap().mount;
            let mounts = mounts.iter().map(mount).collect();
            let mut options = RunOptions { mounts, ..RunOptions::default() };
            settle(&mut options, &ImageConfig::default()).unwrap();
            prepare_in_pod(&options, &self.folders(), &self.volumes()).map_err(|error| error.to_string())
        }
    }

    #[test]
    fn mounts_are_of_folders_of_the_pod_and_volumes_that_are_put_in() {
        let host = Host::new();
        let _socket = UnixListener::bind(host.path("other/socket")).unwrap();
        let mounts = [
            "HOST/src:/a",
            "HOST/src/app/file:/b",
            "HOST/src/in:/c",
            "HOST/src/new/er:/d",
            "HOST/conf:/e:ro",
            "HOST/other/socket:/f",
            "disk:/g",
            "disk:/h:ro",
            "later:/i:nocopy",
            "pool:/j",
            "closed:/k:ro",
        ];
        let prepared = host.prepare(&mounts).unwrap();
        let part = |name: &str, fills| MountKind::Part { tag: "mounts".into(), name: name.into(), fills };
        let below =
            |path: &str| MountKind::Below { tag: "mounts".into(), name: "0".into(), path: path.into() };
        let disk = |name: &str, fills| MountKind::Disk { device: name.into(), fills };
        let kinds: Vec<_> = prepared.mounts.iter().map(|mount| mount.kind.clone()).collect();
        assert_eq!(
            kinds[..5],
            [part("0", false), below("app/file"), below("app"), below("new/er"), part("1", false)]
        );
        assert!(matches!(kinds[5], MountKind::Socket { port: 2000, .. }));
        assert_eq!(kinds[6..9], [disk("disk", true), disk("disk", true), disk("later", false)]);
        assert_eq!(kinds[9..], [part("2", true), part("3", false)]);
        assert!(Path::new(&host.path("src/new/er")).is_dir());
        let in_pod: Vec<_> = prepared.in_pod.iter().map(VolumeName::as_str).collect();
        assert_eq!((in_pod, prepared.holds.len(), prepared.parts.len()), (vec!["disk", "later"], 2, 0));
        // They stay as long as the pod has them.
        let opened = PodFolders::open(&host.folders(), &host.volumes()).unwrap();
        let served: Vec<_> = opened.parts.iter().map(|part| (&*part.name, part.read_only)).collect();
        assert_eq!(served, [("0", false), ("1", true), ("2", false), ("3", true)]);
        drop(prepared);
        assert!(!host.volumes().remove(&"pool".parse().unwrap(), || false).unwrap());
    }

    #[rstest]
    #[case("HOST/other:/x", "is not in a folder of the pod")]
    #[case("HOST/src/../other:/x", "is not in a folder of the pod")]
    // A container may have made the link.
    #[case("HOST/src/out:/x", "is not in a folder of the pod")]
    #[case("HOST/src/out/new:/x", "is not in a folder of the pod")]
    #[case("HOST/missing:/x", "is not in a folder of the pod")]
    #[case("HOST/srcs:/x", "is not in a folder of the pod")]
    #[case("HOST/conf:/x", "conf is read-only in the pod: add :ro")]
    #[case("closed:/x", "volume closed is read-only in the pod: add :ro")]
    #[case("/dev/null:/x", "it is a device")]
    fn what_the_pod_does_not_have_is_refused(#[case] mount: &str, #[case] says: &str) {
        let host = Host::new();
        let error = host.prepare(&[mount]).err().unwrap();
        assert!(error.contains(says) && !error.contains('\n'), "{error}");
        assert!(!Path::new(&host.path("other/new")).exists() && !Path::new(&host.path("missing")).exists());
    }

    #[test]
    fn what_no_vm_can_have_is_refused_when_the_pod_is_made() {
        let host = Host::new();
        let _socket = UnixListener::bind(host.path("socket")).unwrap();
        let many = (0..129).map(|_| host.path("src")).collect::<Vec<_>>();
        for (named, says) in [
            (vec![host.path("socket")], "is a socket, which the pod does not name"),
            (vec!["disk".into()], "volume disk is a disk, which the pod gets when a container has it"),
            (vec!["none".into()], "there is no volume none"),
            (vec!["/dev/null".into()], "it is a device"),
            (many, "129 folders and files are more than the 128"),
        ] {
            let folder = |text: &String| match text.parse().unwrap() {
                PodVolume::Folder(folder) => folder,
                PodVolume::Mount(mount) => panic!("{mount:?}"),
            };
            let folders: Vec<_> = named.iter().map(folder).collect();
            let error = PodFolders::open(&folders, &host.volumes()).err().unwrap().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
