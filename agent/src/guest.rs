//! The guest that the agent runs in as a service: commands in its own root, and its files.
//!
//! A guest is not confined by the agent: a command has the service's namespaces and control group, and is any user of
//! the guest's. Nothing of containers is there.

use std::io;
use std::os::fd::OwnedFd;

use agent_protocol::{CopyWhat, Exec, Failure, Process, Request};
use rustix::process::Pid;

use crate::child;
use crate::container::{Ours, Started};
use crate::copies::{self, Entered};
use crate::error::{During, Result, failure};

/// Where commands are looked for.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Starts a command.
pub fn exec(exec: &Exec) -> Result<Started> {
    let process = command(exec, std::env::var("LANG").ok());
    let (ours, ends) = Ours::new(&process, exec.is_detached)?;
    match fork().during("make a process")? {
        Some(pid) => Ok(ours.started(pid)),
        // The copy of this process; nothing else of it is used.
        None => child::run_in_guest(&process, ends),
    }
}

/// The process of a command. What depends on its user is added when that is known.
fn command(exec: &Exec, language: Option<String>) -> Process {
    let mut env = vec![PATH.to_owned()];
    env.extend(language.map(|language| format!("LANG={language}")));
    env.extend(exec.terminal.map(|_| "TERM=xterm".to_owned()));
    agent_protocol::set_variables(&mut env, &exec.env);
    Process {
        args: exec.args.clone(),
        env,
        // Without one it is the user's home.
        cwd: exec.cwd.clone().unwrap_or_default(),
        user: exec.user.clone().unwrap_or_default(),
        terminal: exec.terminal,
        has_input: exec.has_input,
        ..Process::default()
    }
}

/// Starts a process of the agent's for files of the guest. What has not been sent on `connection` is `pending`.
pub fn copy(connection: &OwnedFd, pending: &[u8], what: &CopyWhat) -> Result<Pid> {
    match fork().during("make a process")? {
        Some(pid) => Ok(pid),
        None => {
            let entered = Entered { first: None, layers: None, mounted: &[], user: "root", freezes: None };
            copies::run(&entered, connection, pending, what)
        }
    }
}

/// Why a request is refused where the agent is a service.
pub fn refuse(request: &Request) -> Option<Failure> {
    let is_of_containers = match request {
        Request::Exec { .. }
        | Request::Attach { .. }
        | Request::Wait { .. }
        | Request::Signal { .. }
        | Request::Resize { .. } => false,
        Request::Copy { what, .. } => {
            matches!(what, CopyWhat::Changes | CopyWhat::Layer { .. } | CopyWhat::Root)
        }
        Request::Start(_)
        | Request::Hold(_)
        | Request::Pod(_)
        | Request::StartInPod(_)
        | Request::Release { .. }
        | Request::Usage { .. }
        | Request::Update { .. }
        | Request::Processes { .. }
        | Request::Freeze { .. }
        | Request::IsFrozen { .. }
        | Request::Awake(_)
        | Request::Rest
        | Request::Adopt(_)
        | Request::Prepare(_)
        | Request::PowerOff => true,
    };
    is_of_containers
        .then(|| failure("the agent is a service of this VM's guest, and has no containers".into()))
}

/// A copy of this process; `None` in the copy.
fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: this process has one thread, so that no lock is held by another one in the copy.
    match unsafe { libc::fork() } {
        0 => Ok(None),
        pid if pid > 0 => Ok(Pid::from_raw(pid)),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use agent_protocol::{Container, GUEST, Pod, Resources, Size, Stream};
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(Exec::default(), None, &[PATH], "")]
    #[case(Exec { user: Some("web:www".into()), ..Exec::default() }, Some("C.UTF-8"), &[PATH, "LANG=C.UTF-8"], "web:www")]
    #[case(
        Exec { terminal: Some(Size { rows: 1, columns: 1 }), env: vec!["PATH=/x".into(), "A=1".into()], ..Exec::default() },
        None, &["PATH=/x", "TERM=xterm", "A=1"], ""
    )]
    fn a_command_has_its_own_variables_last(
        #[case] exec: Exec,
        #[case] language: Option<&str>,
        #[case] env: &[&str],
        #[case] user: &str,
    ) {
        let process = command(&exec, language.map(str::to_owned));
        assert!(process.env == env && process.user == user, "{process:?}");
    }

    #[test]
    fn requests_for_containers_are_refused() {
        let container = || GUEST.to_owned();
        let copy = |what| Request::Copy { container: container(), what };
        let path = || b"/".to_vec();
        for request in [
            Request::Start(Box::<Container>::default()),
            Request::Hold(Box::default()),
            Request::Pod(Box::<Pod>::default()),
            Request::StartInPod(Box::default()),
            Request::Release { container: container(), disks: Vec::new() },
            Request::Usage { container: container() },
            Request::Update { container: container(), resources: Box::<Resources>::default() },
            Request::Processes { container: container() },
            Request::Adopt(Box::default()),
            Request::Prepare(Box::default()),
            Request::PowerOff,
            copy(CopyWhat::Changes),
            copy(CopyWhat::Layer { pauses: true }),
            copy(CopyWhat::Root),
        ] {
            assert!(refuse(&request).is_some(), "{request:?}");
        }
        for request in [
            Request::Exec { container: container(), id: "1".into(), exec: Box::default() },
            Request::Attach { container: container(), stream: Stream::Stdin, position: 0 },
            copy(CopyWhat::Look { path: path() }),
            copy(CopyWhat::Write { path: path(), to_user: false }),
        ] {
            assert!(refuse(&request).is_none(), "{request:?}");
        }
    }
}
