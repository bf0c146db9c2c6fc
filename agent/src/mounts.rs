//! A container's root and what is mounted below it. All this is in the container's own mount namespace.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use agent_protocol::{Container, Mount, MountKind, Preparation, Writable};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, mount_remount, unmount,
};

use crate::devices;
use crate::disk;
use crate::error::{During, Result, failure};
use crate::pod;
use crate::sockets;
use crate::system::RUN;
use crate::volumes::Volumes;

/// The flags of mount(2) that a container may have.
const ALLOWED: MountFlags = MountFlags::RDONLY
    .union(MountFlags::NOSUID)
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC)
    .union(MountFlags::NOATIME)
    .union(MountFlags::NODIRATIME)
    .union(MountFlags::RELATIME)
    .union(MountFlags::STRICTATIME)
    .union(MountFlags::SYNCHRONOUS)
    .union(MountFlags::DIRSYNC);

/// What a root is made of. Neither has a path once the root was entered.
pub struct Layers {
    /// The directory that takes its changes.
    pub changes: OwnedFd,
    pub image: OwnedFd,
}

/// Paths, without a slash in front, that may be made in a container's root to mount on.
pub fn targets(container: &Container) -> Vec<Vec<u8>> {
    let mounts = container.mounts.iter().map(|mount| &mount.target);
    let files = container.files.iter().map(|file| &file.path);
    let mut all = Vec::new();
    for path in mounts.chain(files).map(String::as_str).chain([copies::MTAB.0]) {
        let mut path = path.trim_matches('/');
        // With the directories on the way to it, which are made as well.
        while !path.is_empty() {
            all.push(path.as_bytes().to_vec());
            path = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        }
    }
    all.sort_unstable();
    all.dedup();
    all
}

/// Where a root is mounted before there is a container.
const PREPARED: &str = "/run/prepared";

/// Mounts what a container with the image and the disk of `preparation` has as its root.
pub fn prepare(preparation: &Preparation) -> Result<()> {
    let Preparation { image, writable } = preparation;
    make_mtab(&mount_layers(image, writable, MountFlags::NODEV, PREPARED)?)
}

/// Whether what [`prepare`] has mounted is what `container` has as its root.
pub fn is_for(preparation: &Preparation, container: &Container) -> bool {
    let Preparation { image, writable } = preparation;
    *image == container.image && *writable == container.writable && !container.all_devices
}

/// Takes away what [`prepare`] has mounted; a process that has a copy of these mounts keeps that.
pub fn forget_prepared() -> Result<()> {
    for name in ["root", "changes", "image"] {
        unmount(format!("{PREPARED}/{name}"), UnmountFlags::DETACH).during("unmount what was prepared")?;
    }
    Ok(())
}

/// How much of a container's root is there before it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Before {
    Nothing,
    /// The root without what is mounted in it: see [`prepare`].
    Root,
    /// What the containers of a pod have in common.
    Pod,
}

/// Mounts the container's root with all that is below it, and makes it this process's root.
pub fn enter(container: &Container, before: Before) -> Result<Layers> {
    make_private()?;
    let place = format!("{RUN}/{}", container.id);
    let root = if before == Before::Root {
        fs::create_dir(&place).during(format!("make {place}"))?;
        open_root(PREPARED)?
    } else {
        mount_root(container, &place)?
    };
    make_mtab(&root)?;
    let is_in_pod = before == Before::Pod;
    let volumes = Volumes::new(&place);
    for mount in &container.mounts {
        let is_shm = mount.target == pod::SHM && matches!(mount.kind, MountKind::FileSystem(_));
        match is_in_pod && is_shm {
            true => root.bind(pod::SHM_SOURCE, pod::SHM, Kind::Directory)?,
            false => root.mount(mount, container, &volumes)?,
        }
    }
    write_files(container, &root, &place)?;
    if is_in_pod && !container.mounts.iter().any(|mount| mount.target == pod::HOSTS) {
        root.bind(pod::HOSTS_SOURCE, pod::HOSTS, Kind::File)?;
    }
    for (name, value) in &container.sysctls {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        let file = root.open(&path, OFlags::WRONLY).during(format!("open {path}"))?;
        rustix::io::write(&file, value.as_bytes()).during(format!("set {name} to {value:?}"))?;
    }
    for path in &container.masked_paths {
        root.mask(path)?;
    }
    for path in &container.read_only_paths {
        root.make_read_only(path)?;
    }
    root.pivot()?;
    if container.read_only {
        let flags = MountFlags::RDONLY | MountFlags::BIND | root_flags(container);
        mount_remount("/", flags, "").during("make the root read-only")?;
    }
    Ok(root.layers)
}

/// Mounts the container's root with its volumes and folders of the host, and nothing else, and makes it this process's
/// root.
pub fn enter_root(container: &Container) -> Result<Layers> {
    make_private()?;
    let place = format!("{RUN}/{}", container.id);
    let root = mount_root(container, &place)?;
    let volumes = Volumes::new(&place);
    let is_kept = |mount: &&Mount| match mount.kind {
        MountKind::FileSystem(_) | MountKind::Share(_) | MountKind::Cgroup | MountKind::Socket { .. } => {
            false
        }
        MountKind::Part { .. }
        | MountKind::Disk { .. }
        | MountKind::Below { .. }
        | MountKind::DiskBelow { .. } => true,
    };
    for mount in container.mounts.iter().filter(is_kept) {
        root.mount(mount, container, &volumes)?;
    }
    root.pivot()?;
    Ok(root.layers)
}

fn make_private() -> Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .during("make mounts private")
}

/// Devices in an image cannot be used: those of /dev are mounted one by one.
fn root_flags(container: &Container) -> MountFlags {
    if container.all_devices { MountFlags::empty() } else { MountFlags::NODEV }
}

/// Where a root has the directory that takes its changes.
const UPPER: &str = "changes/upper";

/// Mounts the image, what takes changes, and both as one at `place`/root.
pub fn mount_root(container: &Container, place: &str) -> Result<Root> {
    mount_layers(&container.image, &container.writable, root_flags(container), place)
}

fn mount_layers(image: &str, writable: &Writable, flags: MountFlags, place: &str) -> Result<Root> {
    let path = |name: &str| format!("{place}/{name}");
    for name in ["", "image", "changes", "root"] {
        fs::create_dir(path(name)).during(format!("make {}", path(name)))?;
    }
    mount(image, path("image"), "erofs", MountFlags::RDONLY, c"")
        .during(format!("mount the image {image}"))?;
    match writable {
        Writable::Memory(most) => {
            let size = most.map(|bytes| format!(",size={bytes}")).unwrap_or_default();
            let options = CString::new(format!("mode=755{size}")).unwrap_or_default();
            mount("tmpfs", path("changes"), "tmpfs", MountFlags::empty(), &*options)
                .during("mount a file system for changes")?;
        }
        Writable::Disk(device) => {
            disk::mount(device, &path("changes"), disk::Lasts::Yes)
                .during(format!("mount {device} for changes"))?;
        }
        Writable::Scratch(device) => {
            disk::mount(device, &path("changes"), disk::Lasts::No)
                .during(format!("mount {device} for changes"))?;
        }
    }
    let (upper, work) = (path(UPPER), path("changes/work"));
    let make = |directory: &str| match fs::create_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result.during(format!("make {directory}")),
    };
    make(&upper)?;
    make(&work)?;
    // A disk that was used before has what the overlay made in it, and in its root what the container made of that.
    if !fs::exists(format!("{work}/work")).during("look at the disk for changes")? {
        copy_metadata(&path("image"), &upper).during("prepare the root")?;
    }
    let options = format!("lowerdir={},upperdir={upper},workdir={work}", path("image"));
    let options = CString::new(options).map_err(|_| failure("the container's ID has a zero byte".into()))?;
    mount("overlay", path("root"), "overlay", flags, &*options).during("mount the root")?;
    open_root(place)
}

/// The root at `place`, where [`mount_layers`] has mounted it.
fn open_root(place: &str) -> Result<Root> {
    let open = |name: &str| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(format!("{place}/{name}"), flags, Mode::empty()).during("open the root")
    };
    let layers = Layers { changes: open(UPPER)?, image: open("image")? };
    Ok(Root { directory: open("root")?, layers })
}

/// The root directory of an overlay has the mode, owner and times of its upper directory.
fn copy_metadata(from: &str, to: &str) -> io::Result<()> {
    let metadata = fs::metadata(from)?;
    chown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
    File::open(to)?.set_modified(metadata.modified()?)
}

/// A container's root before it is this process's. Links in it stay in it.
pub struct Root {
    directory: OwnedFd,
    layers: Layers,
}

/// What may be mounted on something else.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File,
}

/// The path by which mount(2) finds an open file.
pub fn path_of(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

impl Root {
    /// Makes it this process's root.
    pub fn pivot(&self) -> Result<()> {
        rustix::process::fchdir(&self.directory).during("enter the root")?;
        rustix::process::pivot_root(".", ".").during("change the root")?;
        // The old root lies over the new one, and is all that is left of the agent's.
        unmount(".", UnmountFlags::DETACH).during("leave the old root")?;
        rustix::process::chdir("/").during("enter the root")
    }

    /// Opens a file of the container's.
    pub fn open(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        // openat2(2) takes few flags beside O_PATH, which opens nothing that could block.
        let plain =
            if flags.contains(OFlags::PATH) { OFlags::empty() } else { OFlags::NOCTTY | OFlags::NONBLOCK };
        let flags = flags | OFlags::CLOEXEC | plain;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        Ok(openat2(&self.directory, path, flags, Mode::empty(), resolve)?)
    }

    /// Opens what is at `path`, to mount on it. Where there is nothing, it is made, with the directories on the way.
    pub fn target(&self, path: &str, kind: Kind) -> Result<OwnedFd> {
        let what = || format!("make {path} to mount on");
        match self.open(path, OFlags::PATH) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            found => return found.during(format!("open {path}")),
        }
        let mut parent = self.open("/", OFlags::PATH).during(what())?;
        let mut parts = path.split('/').filter(|part| !part.is_empty()).peekable();
        let mut here = String::new();
        while let Some(part) = parts.next() {
            here = format!("{here}/{part}");
            let mode = Mode::from_raw_mode(0o755);
            let made = if parts.peek().is_none() && kind == Kind::File {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                rustix::fs::openat(&parent, part, flags, mode).map(drop)
            } else {
                rustix::fs::mkdirat(&parent, part, mode)
            };
            match made {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error).during(what()),
            }
            parent = self.open(&here, OFlags::PATH).during(what())?;
        }
        Ok(parent)
    }

    fn mount(&self, wanted: &Mount, container: &Container, volumes: &Volumes) -> Result<()> {
        let Mount { target: path, kind, flags, options } = wanted;
        let flags =
            u32::try_from(*flags).map_or(MountFlags::empty(), MountFlags::from_bits_truncate) & ALLOWED;
        match kind {
            MountKind::Part { tag, name, fills } => {
                return volumes.mount_part(self, path, flags, (tag, name), *fills);
            }
            MountKind::Below { tag, name, path: below } => {
                return volumes.mount_below(self, path, flags, (tag, name, below));
            }
            MountKind::Disk { device, fills } => {
                return volumes.mount_disk(self, path, flags, device, *fills);
            }
            MountKind::DiskBelow { device, path: below } => {
                return volumes.mount_below_disk(self, path, flags, device, below);
            }
            MountKind::Socket { port, .. } => {
                return self.bind(&sockets::place(&container.id, *port), path, Kind::File);
            }
            MountKind::FileSystem(_) | MountKind::Share(_) | MountKind::Cgroup => {}
        }
        let target = self.target(path, Kind::Directory)?;
        let target = path_of(target.as_fd());
        let options =
            CString::new(&**options).map_err(|_| failure(format!("{path} has a zero in its options")))?;
        let what = |kind: &str| format!("mount {kind} on {path}");
        match kind {
            MountKind::FileSystem(kind) => {
                mount(kind, &target, kind, flags, &*options).during(what(kind))?;
                if path == "/dev" {
                    devices::add(self, container)?;
                }
            }
            MountKind::Share(tag) => {
                mount(tag, &target, "virtiofs", flags, &*options).during(what(tag))?;
            }
            MountKind::Cgroup => {
                mount("cgroup", &target, "cgroup2", flags, &*options).during(what("cgroup2"))?;
            }
            MountKind::Part { .. }
            | MountKind::Disk { .. }
            | MountKind::Below { .. }
            | MountKind::DiskBelow { .. }
            | MountKind::Socket { .. } => {}
        }
        Ok(())
    }

    /// Mounts `source`, a path of the agent's, on `path`.
    pub fn bind(&self, source: &str, path: &str, kind: Kind) -> Result<()> {
        let target = self.target(path, kind)?;
        mount_bind(source, path_of(target.as_fd())).during(format!("mount on {path}"))
    }

    /// The same, with these flags.
    pub fn bind_with(&self, source: &str, path: &str, kind: Kind, flags: MountFlags) -> Result<()> {
        self.bind(source, path, kind)?;
        let what = || format!("set how {path} is mounted");
        // The new mount lies over what was there.
        let target = self.open(path, OFlags::PATH).during(what())?;
        mount_remount(path_of(target.as_fd()), MountFlags::BIND | flags, "").during(what())
    }

    /// Hides what is at `path`, if there is something.
    fn mask(&self, path: &str) -> Result<()> {
        let Ok(target) = self.open(path, OFlags::PATH) else { return Ok(()) };
        let is_directory = rustix::fs::fstat(&target)
            .is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir());
        let target = path_of(target.as_fd());
        if is_directory {
            mount("tmpfs", target, "tmpfs", MountFlags::RDONLY, c"size=0k").during(format!("hide {path}"))
        } else {
            mount_bind("/dev/null", target).during(format!("hide {path}"))
        }
    }

    fn make_read_only(&self, path: &str) -> Result<()> {
        let Ok(target) = self.open(path, OFlags::PATH) else { return Ok(()) };
        let what = || format!("make {path} read-only");
        mount_bind(path_of(target.as_fd()), path_of(target.as_fd())).during(what())?;
        // The new mount lies over the one that was opened.
        let target = self.open(path, OFlags::PATH).during(what())?;
        let flags = MountFlags::RDONLY | MountFlags::BIND | kept_flags(target.as_fd());
        mount_remount(path_of(target.as_fd()), flags, "").during(what())
    }
}

/// The flags of the mount that `fd` is on, which a remount would take away.
fn kept_flags(fd: BorrowedFd<'_>) -> MountFlags {
    let flags = rustix::fs::fstatvfs(fd).map(|stat| stat.f_flag.bits()).unwrap_or_default();
    let mut kept = MountFlags::empty();
    for (has, keeps) in [
        (libc::ST_NOSUID, MountFlags::NOSUID),
        (libc::ST_NODEV, MountFlags::NODEV),
        (libc::ST_NOEXEC, MountFlags::NOEXEC),
    ] {
        if flags & has != 0 {
            kept |= keeps;
        }
    }
    kept
}

/// Makes the link [`copies::MTAB`] in the root's own file system, on which nothing is mounted yet.
fn make_mtab(root: &Root) -> Result<()> {
    let (path, target) = copies::MTAB;
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    let directory = root.target(directory, Kind::Directory)?;
    match rustix::fs::symlinkat(target, &directory, name) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error).during(format!("make /{path}")),
    }
}

/// Mounts the files that the host gives on those of the image.
fn write_files(container: &Container, root: &Root, place: &str) -> Result<()> {
    for (number, file) in container.files.iter().enumerate() {
        let source = format!("{place}/file{number}");
        fs::write(&source, &file.content).during(format!("write {}", file.path))?;
        fs::set_permissions(&source, fs::Permissions::from_mode(0o644))
            .during(format!("write {}", file.path))?;
        root.bind(&source, &file.path, Kind::File)?;
    }
    Ok(())
}

/// Mounts a terminal on /dev/console of this process's root.
pub fn bind_console(terminal: BorrowedFd<'_>) -> Result<()> {
    let what = "make /dev/console";
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open("/dev/console", flags, Mode::from_raw_mode(0o620)).during(what)?;
    mount_bind(path_of(terminal), "/dev/console").during(what)
}
