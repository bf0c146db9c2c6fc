//! Landlock: no file by its path, no TCP, no abstract socket and no signal to another process.

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetError,
    RulesetStatus, Scope,
};

/// The newest version that this asks for; an older host gives what it has of it.
const NEWEST: ABI = ABI::V6;
/// `LANDLOCK_CREATE_RULESET_VERSION` (landlock_create_ruleset(2)).
const ASK_VERSION: u32 = 1;

/// Denies this thread, and those that it starts, all that Landlock knows.
///
/// Returns what that is; an error text where the host has no Landlock.
pub(crate) fn deny_all() -> Result<String, String> {
    let status = restrict().map_err(|error| error.to_string())?;
    if status.ruleset == RulesetStatus::NotEnforced {
        return Err("this kernel has no Landlock, or it is off (lsm=)".into());
    }
    let version = version();
    let denied = match version {
        ..4 => "files",
        4..6 => "files, TCP",
        6.. => "files, TCP, abstract sockets, signals",
    };
    Ok(format!("{denied} (ABI {version})"))
}

fn restrict() -> Result<landlock::RestrictionStatus, RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .restrict_self()
}

/// The host's version, 0 where there is none.
fn version() -> i64 {
    // SAFETY: without attributes the call takes no memory.
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, ASK_VERSION)
    };
    version.max(0)
}
