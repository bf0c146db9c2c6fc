//! Where a VM's control group can be made: in a subtree that was delegated to mvm (cgroups(7)), or for root, beside
//! those of the host's services.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

use super::{CgroupError, systemd};

/// Where the hierarchy of version 2 is mounted, where it is the host's only one.
pub(super) const MOUNT: &str = "/sys/fs/cgroup";
/// What statfs(2) says of it.
const CGROUP2_MAGIC: i64 = 0x6367_7270;
/// The directory of all of root's VMs, below the root of the hierarchy. It stays, as another VM may be about to use it.
const OF_ROOT: &str = "mvm";
/// The group of the processes that keep VMs: a group whose children have controllers has no process of its own.
const KEEPERS: &str = "mvm-keepers";
/// The controllers that a VM's group needs, and one that it uses where it is there.
const NEEDED: [&str; 2] = ["memory", "pids"];
const USED: &str = "cpu";
/// By which systemd says that it leaves a group's subtree to the group's processes (systemd's CGROUP_DELEGATION).
const DELEGATED: [&CStr; 2] = [c"user.delegate", c"trusted.delegate"];
/// The most processes of mvm that are moved out of a group.
const MOST_KEEPERS: usize = 1024;

/// A group in which VMs' groups are made.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) directory: PathBuf,
    kind: PlaceKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PlaceKind {
    /// It is left to this process and those beside it.
    Delegated,
    /// It is root's, below the root of the hierarchy.
    OfRoot,
}

/// Whether the file system at `path` is a hierarchy of version 2.
pub(super) fn is_cgroup2(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type == CGROUP2_MAGIC)
}

/// Where this process can have groups for VMs.
pub(super) fn find() -> Result<Place, CgroupError> {
    let mount = Path::new(MOUNT);
    if !is_cgroup2(mount) {
        return Err(CgroupError::NotVersion2);
    }
    let own = fs::read_to_string("/proc/self/cgroup").map_err(CgroupError::host("read /proc/self/cgroup"))?;
    find_in(mount, &own, geteuid().is_root())
}

/// The same, where the hierarchy is mounted at `mount` and /proc/self/cgroup has the text `own`.
fn find_in(mount: &Path, own: &str, is_root: bool) -> Result<Place, CgroupError> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::/")).ok_or(CgroupError::NotVersion2)?;
    if path.split('/').any(|name| name == "..") {
        // That of another namespace of control groups.
        return Err(CgroupError::NotDelegated);
    }
    let group = mount.join(path);
    let has_parent = group != mount;
    for candidate in [Some(&*group), group.parent().filter(|_| has_parent)].into_iter().flatten() {
        if is_delegated(candidate, mount) {
            return Ok(Place { directory: candidate.to_owned(), kind: PlaceKind::Delegated });
        }
    }
    // Limits of a service are meant for its VMs too, so that they leave nothing but a login and the root itself.
    let is_free = !has_parent || name_of(&group).starts_with("session-");
    if is_root && is_free && is_host_root(mount) {
        return Ok(Place { directory: mount.join(OF_ROOT), kind: PlaceKind::OfRoot });
    }
    Err(CgroupError::NotDelegated)
}

/// Whether it is the root of the host's hierarchy, and not that of a namespace: that one has no events.
fn is_host_root(mount: &Path) -> bool {
    !mount.join("cgroup.events").exists()
}

fn name_of(group: &Path) -> String {
    group.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Whether `group` was left to its processes: systemd says so, or it is the first one on the way from the root that
/// belongs to this user. The one of a user's own systemd is left to that; it is asked about those of its units that have
/// no process but mvm's, since it marks none.
fn is_delegated(group: &Path, mount: &Path) -> bool {
    if group == mount {
        // The root of a namespace is that of a container's manager, which has left it to the container where it can be
        // written to.
        return !is_host_root(mount) && rustix::fs::access(group, rustix::fs::Access::WRITE_OK).is_ok();
    }
    if name_of(group).starts_with("user@") {
        return false;
    }
    if DELEGATED.iter().any(|name| has_attribute(group, name)) {
        return true;
    }
    let owner = |path: &Path| fs::metadata(path).ok().map(|metadata| metadata.uid());
    let user = geteuid().as_raw();
    let is_first = user != 0 && owner(group) == Some(user) && group.parent().and_then(owner) != Some(user);
    is_first
        || systemd::unit_of(group).is_some_and(|unit| {
            processes_of(group).is_ok_and(|found| are_mvms(&found)) && systemd::delegates(unit)
        })
}

/// The processes in `group` itself; 0 for one of another namespace.
fn processes_of(group: &Path) -> Result<Vec<u32>, CgroupError> {
    let listed = fs::read_to_string(group.join("cgroup.procs"));
    let listed = listed.map_err(CgroupError::host("read the processes of the control group"))?;
    Ok(listed.lines().map(|line| line.parse().unwrap_or(0)).collect())
}

/// Whether all `processes` run this program.
fn are_mvms(processes: &[u32]) -> bool {
    let own = program(std::process::id());
    own.is_some() && processes.iter().all(|process| program(*process) == own)
}

fn has_attribute(group: &Path, name: &CStr) -> bool {
    let mut value = [0_u8; 8];
    matches!(rustix::fs::getxattr(group, name, &mut value), Ok(1) if value.first() == Some(&b'1'))
}

impl Place {
    /// Makes sure that groups in it have the controllers of VMs. Returns whether they have the one for processors too.
    pub(super) fn prepare(&self) -> Result<bool, CgroupError> {
        if self.kind == PlaceKind::OfRoot {
            enable(self.directory.parent().unwrap_or(Path::new(MOUNT)))?;
            match fs::create_dir(&self.directory) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(CgroupError::make(&self.directory)(error));
                }
                _ => return enable(&self.directory),
            }
        }
        match enable(&self.directory) {
            // Processes in it are in the way.
            Err(CgroupError::Host { .. }) => {
                self.leave()?;
                enable(&self.directory)
            }
            result => result,
        }
    }

    /// Whether groups in it could have the controllers of VMs.
    pub(super) fn examine(&self) -> Result<(), CgroupError> {
        let group = match self.kind {
            PlaceKind::OfRoot => self.directory.parent().unwrap_or(Path::new(MOUNT)),
            PlaceKind::Delegated => &self.directory,
        };
        let is_enabled = missing(group)?.is_empty();
        if is_enabled || self.kind == PlaceKind::OfRoot || are_mvms(&processes_of(&self.directory)?) {
            Ok(())
        } else {
            Err(CgroupError::Shared)
        }
    }

    /// Moves this process, and others of mvm, out of the group itself.
    fn leave(&self) -> Result<(), CgroupError> {
        let keepers = self.directory.join(KEEPERS);
        let mut seen = 0;
        loop {
            let processes = processes_of(&self.directory)?;
            if processes.is_empty() {
                return Ok(());
            }
            if !are_mvms(&processes) {
                return Err(CgroupError::Shared);
            }
            match fs::create_dir(&keepers) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(CgroupError::make(&keepers)(error));
                }
                _ => {}
            }
            for process in processes {
                seen += 1;
                if seen > MOST_KEEPERS {
                    return Err(CgroupError::Shared);
                }
                match fs::write(keepers.join("cgroup.procs"), process.to_string()) {
                    // It has ended.
                    Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                    moved => moved.map_err(CgroupError::host("move the keeper into a control group"))?,
                }
            }
        }
    }
}

/// Which program a process runs, as a file.
fn program(process: u32) -> Option<(u64, u64)> {
    let program = fs::metadata(format!("/proc/{process}/exe")).ok()?;
    Some((program.dev(), program.ino()))
}

/// A list in one of the files of `group`.
fn list(group: &Path, name: &str) -> Vec<String> {
    let text = fs::read_to_string(group.join(name)).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// Which of the controllers that VMs need the children of `group` lack.
fn missing(group: &Path) -> Result<Vec<&'static str>, CgroupError> {
    let (offered, enabled) = (list(group, "cgroup.controllers"), list(group, "cgroup.subtree_control"));
    if let Some(name) = NEEDED.into_iter().find(|name| !offered.iter().any(|other| other == name)) {
        return Err(CgroupError::NoController(name));
    }
    Ok(NEEDED.into_iter().filter(|name| !enabled.iter().any(|other| other == name)).collect())
}

/// Gives the children of `group` the controllers of VMs; returns whether they have the one for processors too.
fn enable(group: &Path) -> Result<bool, CgroupError> {
    let missing = missing(group)?;
    let enable = |text: &str| fs::write(group.join("cgroup.subtree_control"), text);
    if !missing.is_empty() {
        let text: Vec<_> = missing.iter().map(|name| format!("+{name}")).collect();
        enable(&text.join(" ")).map_err(CgroupError::host("enable controllers of control groups"))?;
    }
    let has = |name: &str| list(group, name).iter().any(|name| name == USED);
    Ok(has("cgroup.subtree_control") || has("cgroup.controllers") && enable(&format!("+{USED}")).is_ok())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// A hierarchy of directories with the files that are looked at.
    fn hierarchy(is_host: bool, groups: &[&str]) -> tempfile::TempDir {
        let mount = tempfile::tempdir().unwrap();
        if !is_host {
            fs::write(mount.path().join("cgroup.events"), "").unwrap();
        }
        for group in groups {
            fs::create_dir_all(mount.path().join(group)).unwrap();
        }
        mount
    }

    #[rstest]
    #[case::the_root("", Some("mvm"))]
    #[case::a_login("user.slice/user-0.slice/session-3.scope", Some("mvm"))]
    #[case::a_service("system.slice/web.service", None)]
    #[case::a_scope("user.slice/user-0.slice/user@0.service/app.slice/run-1.scope", None)]
    #[case::elsewhere("../other", None)]
    fn root_leaves_a_login_and_no_service(#[case] own: &str, #[case] expected: Option<&str>) {
        let groups = [own];
        let mount = hierarchy(true, if own.starts_with("..") { &[] } else { &groups });
        let found = find_in(mount.path(), &format!("0::/{own}\n"), true).ok();
        let place = |name: &str| Place { directory: mount.path().join(name), kind: PlaceKind::OfRoot };
        assert_eq!(found, expected.map(place));
        if !own.is_empty() {
            assert!(matches!(
                find_in(mount.path(), &format!("0::/{own}"), false),
                Err(CgroupError::NotDelegated)
            ));
        }
    }

    #[test]
    fn what_systemd_delegates_is_found_from_within_and_from_a_group_in_it() {
        let scope = "user.slice/user@1000.service/app.slice/run-1.scope";
        let mount = hierarchy(true, &[&format!("{scope}/mvm-keepers/below")]);
        let attribute = rustix::fs::XattrFlags::empty();
        for name in [scope, "user.slice/user@1000.service"] {
            let set = rustix::fs::setxattr(mount.path().join(name), c"user.delegate", b"1", attribute);
            if set.is_err() {
                return eprintln!("skipped: the file system of temporary files has no attributes");
            }
        }
        let find = |own: &str| find_in(mount.path(), &format!("0::/{own}\n"), false).ok();
        let expected = || Some(Place { directory: mount.path().join(scope), kind: PlaceKind::Delegated });
        assert_eq!(find(scope), expected());
        assert_eq!(find(&format!("{scope}/mvm-keepers")), expected());
        assert_eq!(find(&format!("{scope}/mvm-keepers/below")), None);
        assert_eq!(find("user.slice/user@1000.service/app.slice"), None, "a user's systemd's own");
    }

    #[test]
    fn a_container_has_the_root_of_its_namespace() {
        let mount = hierarchy(false, &[]);
        let found = find_in(mount.path(), "0::/\n", true).unwrap();
        assert_eq!(found, Place { directory: mount.path().to_owned(), kind: PlaceKind::Delegated });
    }

    #[test]
    fn older_hierarchies_are_not_used() {
        let mount = hierarchy(true, &[]);
        let v1 = "12:pids:/user.slice\n1:name=systemd:/\n";
        assert!(matches!(find_in(mount.path(), v1, true), Err(CgroupError::NotVersion2)));
        assert!(!is_cgroup2(mount.path()));
    }

    #[test]
    fn a_group_with_processes_of_others_is_left_as_it_is() {
        let mount = hierarchy(true, &["scope"]);
        let directory = mount.path().join("scope");
        fs::write(directory.join("cgroup.controllers"), "cpu memory pids").unwrap();
        // A directory cannot be written to, as this file of a group that has processes.
        fs::create_dir(directory.join("cgroup.subtree_control")).unwrap();
        let place = Place { directory: directory.clone(), kind: PlaceKind::Delegated };
        fs::write(directory.join("cgroup.procs"), format!("{}\n1\n", std::process::id())).unwrap();
        assert!(matches!(place.prepare(), Err(CgroupError::Shared)));
        assert!(!directory.join(KEEPERS).exists());
        fs::write(directory.join("cgroup.procs"), "0\n").unwrap();
        assert!(matches!(place.prepare(), Err(CgroupError::Shared)), "one of another namespace");
    }

    #[test]
    fn no_process_is_moved_for_controllers_that_are_not_there() {
        let mount = hierarchy(true, &["scope"]);
        let directory = mount.path().join("scope");
        fs::write(directory.join("cgroup.controllers"), "cpu pids").unwrap();
        fs::write(directory.join("cgroup.procs"), std::process::id().to_string()).unwrap();
        let place = Place { directory: directory.clone(), kind: PlaceKind::Delegated };
        assert!(matches!(place.prepare(), Err(CgroupError::NoController("memory"))));
        assert!(!directory.join(KEEPERS).exists());
    }

    #[test]
    fn controllers_that_are_missing_are_named() {
        let mount = hierarchy(true, &[]);
        let controllers = |offered: &str, enabled: &str| {
            fs::write(mount.path().join("cgroup.controllers"), offered).unwrap();
            fs::write(mount.path().join("cgroup.subtree_control"), enabled).unwrap();
            enable(mount.path()).map_err(|error| error.to_string())
        };
        assert!(controllers("cpu memory", "").unwrap_err().contains("pids"));
        assert_eq!(controllers("memory pids", "memory pids"), Ok(false));
        assert_eq!(controllers("memory pids cpu", "memory pids cpu"), Ok(true));
        assert_eq!(controllers("memory pids", ""), Ok(false));
        assert_eq!(fs::read_to_string(mount.path().join("cgroup.subtree_control")).unwrap(), "+memory +pids");
    }
}
