//! A virtiofsd process of mvm's own.

use std::os::unix::net::UnixStream;

use devices::virtio::vhost_user::ShareTag;

use super::command::command;
use super::{ShareError, socket};
use crate::ShareConfig;
use crate::helper::{Helper, Program};

/// The program. Not that of /usr/lib/qemu: what older versions of QEMU have there goes by the same name, but is another
/// program with other options, and cannot share read-only.
pub static VIRTIOFSD: Program = Program {
    name: "virtiofsd",
    variable: "MVM_VIRTIOFSD",
    places: &["/usr/libexec/virtiofsd", "/usr/lib/virtiofsd"],
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
    let start = || {
        let (listener, stream) = socket::connected_listener()?;
        let command = command(&program, share, &path, listener);
        Ok((Helper::start(&VIRTIOFSD, format!("share {}", share.tag), command)?, stream))
    };
    start().map_err(|source| ShareError::Start { program: program.clone(), tag: share.tag.clone(), source })
}

/// Why it ended, in its own words; `None` where it runs.
pub(super) fn failure(process: Helper, tag: &ShareTag) -> Option<ShareError> {
    let message = process.into_last_words()?;
    // virtiofsd's words for all that its sandbox needs and the host does not allow.
    let hint = if message.contains("sandbox") {
        " (sandbox=chroot takes root, sandbox=none no rights, behind the share: it is held less)"
    } else {
        ""
    };
    Some(ShareError::Ended { tag: tag.clone(), message, hint })
}

/// What is behind the time, the level and the module.
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
    fn what_it_says_is_told_without_time_and_module() {
        assert_eq!(message("[2026-01-02T03:04:05Z ERROR virtiofsd] Error [x] here "), "Error [x] here");
        assert_eq!(message("no brackets"), "no brackets");
        assert_eq!(message("[no end"), "[no end");
    }

    #[test]
    fn where_its_sandbox_fails_there_is_a_way_out() {
        let mut command = Command::new("/bin/sh");
        let script = "echo '[now ERROR virtiofsd] Error entering sandbox: Unshare' >&2; exit 1";
        command.args(["-c", script]);
        confine(&mut command, Vec::new());
        let process = Helper::start(&VIRTIOFSD, String::new(), command).unwrap();
        let said = failure(process, &"/work".parse().unwrap()).unwrap().to_string();
        assert!(
            said.contains("does not share /work: Error entering sandbox: Unshare (sandbox=chroot"),
            "{said}"
        );
    }
}
