//! The command line of virtiofsd.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Command;

use rustix::process::{Resource, getegid, geteuid, getrlimit};

use super::tree::Tree;
use crate::helper::confine;
use crate::{Sandbox, ShareConfig};

/// The most files that a virtiofsd keeps open. It keeps each file open that the guest's kernel has in its cache, and
/// each takes about 1 KiB of the host's memory.
const MAX_FILES: u64 = 1_000_000;

/// The command that serves `folder`, in which there is `tree`, as `share` says, to the first connection to `listener`.
pub(super) fn command(
    program: &Path,
    share: &ShareConfig,
    folder: &Path,
    tree: Option<Tree>,
    listener: OwnedFd,
) -> Command {
    let mut command = Command::new(program);
    command.args(options(share)).arg("--shared-dir").arg(folder);
    command.arg(format!("--fd={}", listener.as_raw_fd()));
    if let Some(tree) = tree {
        tree.make_for(&mut command);
    }
    confine(&mut command, vec![listener]);
    command
}

fn options(share: &ShareConfig) -> Vec<String> {
    let mut options = vec![
        format!("--sandbox={}", share.sandbox.name()),
        "--seccomp=kill".to_owned(),
        "--log-level=warn".to_owned(),
        // The guest sees the host's changes after a second at most.
        "--cache=auto".to_owned(),
        "--xattr".to_owned(),
        "--announce-submounts".to_owned(),
        // To open files by handle needs a capability that reaches beyond the folder (CAP_DAC_READ_SEARCH).
        "--inode-file-handles=never".to_owned(),
        // Without it, virtiofsd raises the limit to whatever the system allows if it is root.
        format!("--rlimit-nofile={}", max_files()),
    ];
    if share.read_only {
        options.push("--readonly".to_owned());
    }
    // In the namespace of a tree this user is root.
    if !geteuid().is_root() && share.parts.is_empty() {
        options.extend(unprivileged(share.sandbox));
    }
    options
}

/// The limit of open files for virtiofsd: this process's hard limit, up to [`MAX_FILES`]. root could raise it, but who
/// limits mvm (`LimitNOFILE=` of a unit, say) means its helpers too.
fn max_files() -> u64 {
    getrlimit(Resource::Nofile).maximum.unwrap_or(MAX_FILES).min(MAX_FILES)
}

/// Without root, virtiofsd serves one user: the guest's root is that user.
fn unprivileged(sandbox: Sandbox) -> [String; 2] {
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    match sandbox {
        Sandbox::Namespace => [format!("--uid-map=:0:{user}:1:"), format!("--gid-map=:0:{group}:1:")],
        Sandbox::Chroot | Sandbox::None => {
            [format!("--translate-uid=map:0:{user}:1"), format!("--translate-gid=map:0:{group}:1")]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_virtiofsd_has_a_limit_of_open_files() {
        for text in ["/a:/a", "/a:/a:ro,sandbox=none", "/a:/a,sandbox=chroot"] {
            let options = options(&text.parse().unwrap());
            let limits: Vec<u64> = options
                .iter()
                .filter_map(|option| option.strip_prefix("--rlimit-nofile=")?.parse().ok())
                .collect();
            assert!(matches!(limits[..], [1..=MAX_FILES]), "{options:?}");
        }
    }
}
