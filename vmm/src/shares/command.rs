//! How virtiofsd is started: its options, and what it inherits.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Command;

use rustix::process::{Resource, getegid, geteuid, getrlimit};

use crate::helper::confine;
use crate::{Sandbox, ShareConfig};

/// The most files that virtiofsd keeps open, where its user may; each that the guest knows is one.
const MAX_FILES: u64 = 1_000_000;

/// The command that serves `folder` as `share` says, to the first who connects to `listener`.
pub(super) fn command(program: &Path, share: &ShareConfig, folder: &Path, listener: OwnedFd) -> Command {
    let mut command = Command::new(program);
    command.args(options(share)).arg("--shared-dir").arg(folder);
    command.arg(format!("--fd={}", listener.as_raw_fd()));
    confine(&mut command, vec![listener]);
    command
}

fn options(share: &ShareConfig) -> Vec<String> {
    let mut options = vec![
        format!("--sandbox={}", share.sandbox.name()),
        "--seccomp=kill".to_owned(),
        "--log-level=warn".to_owned(),
        // What the host changes is seen by the guest after a second at most.
        "--cache=auto".to_owned(),
        "--xattr".to_owned(),
        "--announce-submounts".to_owned(),
        // To open files by handle takes a right that reaches beyond the folder (CAP_DAC_READ_SEARCH).
        "--inode-file-handles=never".to_owned(),
    ];
    if share.read_only {
        options.push("--readonly".to_owned());
    }
    if !geteuid().is_root() {
        options.extend(unprivileged(share.sandbox));
    }
    options
}

/// What virtiofsd can do for one user alone: the guest's root is that user.
fn unprivileged(sandbox: Sandbox) -> Vec<String> {
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    let files = getrlimit(Resource::Nofile).maximum.unwrap_or(MAX_FILES).min(MAX_FILES);
    let mut options = vec![format!("--rlimit-nofile={files}")];
    options.extend(match sandbox {
        Sandbox::Namespace => [format!("--uid-map=:0:{user}:1:"), format!("--gid-map=:0:{group}:1:")],
        Sandbox::Chroot | Sandbox::None => {
            [format!("--translate-uid=map:0:{user}:1"), format!("--translate-gid=map:0:{group}:1")]
        }
    });
    options
}
