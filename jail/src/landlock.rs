//! Landlock: no file by its path but those that are named, no TCP, no abstract socket and no signal to another process.

use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

/// The newest version that this asks for; an older host gives what it has of it.
const NEWEST: ABI = ABI::V6;
/// The first version with which a file can be renamed from one directory to another.
const RENAMES: i64 = 2;
/// `LANDLOCK_CREATE_RULESET_VERSION` (landlock_create_ruleset(2)).
const ASK_VERSION: u32 = 1;

/// What a process still reaches by paths. What is not there is left out.
#[derive(Clone, Debug, Default)]
pub struct Reach {
    /// Directories beneath which files and directories are read, made, changed and removed, but not executed.
    pub written: Vec<PathBuf>,
    /// Directories beneath which files and directories are read.
    pub read: Vec<PathBuf>,
    /// Single files that are read.
    pub files: Vec<PathBuf>,
    /// Directories whose names are read, and those beneath.
    pub listed: Vec<PathBuf>,
    /// TCP connections are made.
    pub connects: bool,
}

/// Denies this thread, and those that it starts, all that Landlock knows.
///
/// Returns what that is; an error text where the host has no Landlock.
pub(crate) fn deny_all() -> Result<String, String> {
    restrict(&Reach::default()).map(|version| denied(version, "files", "TCP"))
}

/// The same of all but `reach`.
pub(crate) fn deny_all_but(reach: &Reach) -> Result<String, String> {
    let version = version();
    if version < RENAMES && !reach.written.is_empty() {
        // There, a ruleset denies each rename to another directory.
        return Err(if version < 1 { NONE.into() } else { "this kernel's Landlock denies renames".into() });
    }
    let tcp = if reach.connects { "TCP servers" } else { "TCP" };
    restrict(reach).map(|version| denied(version, "other files", tcp))
}

const NONE: &str = "this kernel has no Landlock, or it is off (lsm=)";

fn denied(version: i64, files: &str, tcp: &str) -> String {
    match version {
        ..4 => format!("{files} (ABI {version})"),
        4..6 => format!("{files}, {tcp} (ABI {version})"),
        6.. => format!("{files}, {tcp}, abstract sockets, signals (ABI {version})"),
    }
}

/// Returns the host's version.
fn restrict(reach: &Reach) -> Result<i64, String> {
    let status = ruleset(reach).map_err(|error| error.to_string())?;
    match status.landlock {
        _ if status.ruleset == RulesetStatus::NotEnforced => Err(NONE.into()),
        LandlockStatus::Available { effective_abi, kernel_abi } => {
            Ok(kernel_abi.unwrap_or(effective_abi as i32).into())
        }
        _ => Err(NONE.into()),
    }
}

fn ruleset(reach: &Reach) -> Result<landlock::RestrictionStatus, RulesetError> {
    let net = if reach.connects { AccessNet::BindTcp.into() } else { AccessNet::from_all(NEWEST) };
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(net)?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    let written = AccessFs::from_all(NEWEST) & !(AccessFs::Execute | AccessFs::IoctlDev | AccessFs::MakeSock);
    let rules: [(&[PathBuf], BitFlags<AccessFs>); 4] = [
        (&reach.written, written),
        (&reach.read, AccessFs::ReadFile | AccessFs::ReadDir),
        (&reach.files, AccessFs::ReadFile.into()),
        (&reach.listed, AccessFs::ReadDir.into()),
    ];
    let rules = rules.into_iter().flat_map(|(paths, access)| paths.iter().map(move |path| (path, access)));
    let rules = rules.filter_map(|(path, access)| Some(PathBeneath::new(PathFd::new(path).ok()?, access)));
    // Who calls this has set no_new_privs.
    ruleset.add_rules(rules.map(Ok::<_, RulesetError>))?.no_new_privs(false).restrict_self()
}

/// Whether the host denies TCP.
#[cfg(test)]
pub(crate) fn knows_tcp() -> bool {
    version() >= 4
}

/// The host's version, 0 where there is none.
fn version() -> i64 {
    // SAFETY: without attributes the call takes no memory.
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, ASK_VERSION)
    };
    version.max(0)
}
