//! The virtiofsd that mvm starts for a share.

use std::os::unix::net::UnixStream;

use devices::virtio::vhost_user::ShareTag;

use super::command::command;
use super::tree::Tree;
use super::{ShareError, socket};
use crate::ShareConfig;
use crate::helper::{Build, Helper, Package, Program};

/// The program. Not /usr/lib/qemu/virtiofsd of QEMU before 8.0: it has the same name, but other options, and can't
/// share read-only.
pub static VIRTIOFSD: Program = Program {
    name: "virtiofsd",
    variable: "MVM_VIRTIOFSD",
    places: &["/usr/libexec/virtiofsd", "/usr/lib/virtiofsd"],
    package: Package {
        since: &[("debian", (13, 0)), ("ubuntu", (23, 4))],
        otherwise: "build it: `apt install gcc libcap-ng-dev libseccomp-dev`, then `cargo install --locked virtiofsd` \
                    with the cargo of rustup",
        build: Some(Build {
            packages: &["gcc", "libcap-ng-dev", "libseccomp-dev"],
            builder: "rustup",
            command: "cargo install --locked virtiofsd",
        }),
    },
    message,
};

/// Starts it for `share`, and connects to it.
///
/// # Errors
///
/// [`ShareError`]: there is no such folder, or no virtiofsd.
pub(super) fn start(share: &ShareConfig) -> Result<(Helper, UnixStream), ShareError> {
    let folder = |source| ShareError::Folder { path: share.path.clone(), source };
    let path = share.path.canonicalize().map_err(folder)?;
    if !path.is_dir() {
        return Err(ShareError::NotAFolder(share.path.clone()));
    }
    let program = VIRTIOFSD.find().ok_or(ShareError::NoProgram)?;
    let tree = match share.parts.is_empty() {
        true => None,
        false => Some(Tree::new(&path, &share.parts)?),
    };
    let start = || {
        let (listener, stream) = socket::connected_listener()?;
        let command = command(&program, share, &path, tree, listener);
        Ok((Helper::start(&VIRTIOFSD, format!("share {}", share.tag), command)?, stream))
    };
    start().map_err(|source| ShareError::Start { program: program.clone(), tag: share.tag.clone(), source })
}

/// Why it ended, in its own words; `None` if it still runs.
pub(super) fn failure(process: Helper, tag: &ShareTag, is_tree: bool) -> Option<ShareError> {
    let message = process.into_last_words()?;
    // virtiofsd says so of everything that its sandbox needs and the host does not allow.
    let hint = if message.contains("sandbox") && is_tree {
        " (it needs root, or a host on which users make namespaces: see the limits user.max_user_namespaces, \
         kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns of sysctl)"
    } else if message.contains("sandbox") {
        " (add ,sandbox=chroot, which needs root, or ,sandbox=none, which isolates virtiofsd less)"
    } else {
        ""
    };
    Some(ShareError::Ended { tag: tag.clone(), message, hint })
}

/// A line of its log without the time, the level and the module.
fn message(line: &str) -> &str {
    match line.strip_prefix('[').and_then(|line| line.split_once("] ")) {
        Some((_, message)) => message.trim(),
        None => line.trim(),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::helper::confine;

    #[test]
    fn messages_are_shown_without_time_and_module() {
        assert_eq!(message("[2026-01-02T03:04:05Z ERROR virtiofsd] Error [x] here "), "Error [x] here");
        assert_eq!(message("no brackets"), "no brackets");
        assert_eq!(message("[no end"), "[no end");
    }

    #[test]
    fn the_error_of_a_sandbox_names_the_others() {
        let mut command = Command::new("/bin/sh");
        let script = "echo '[now ERROR virtiofsd] Error entering sandbox: Unshare' >&2; exit 1";
        command.args(["-c", script]);
        confine(&mut command, Vec::new());
        let process = Helper::start(&VIRTIOFSD, String::new(), command).unwrap();
        let said = failure(process, &"/work".parse().unwrap(), false).unwrap().to_string();
        assert!(
            said.contains("failed to share /work: Error entering sandbox: Unshare (add ,sandbox=chroot"),
            "{said}"
        );
    }
}
