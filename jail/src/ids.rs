//! A user and a group that a process alone is.

use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Gid, Uid, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, set_capabilities, set_keep_capabilities, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

use crate::layer::State;

/// Who a process becomes that root has started. One of another user stays who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids {
    /// The number of a user and of a group; none where there is none for it, so that it stays root.
    pub id: Option<u32>,
    /// Why this is not its alone, if it is not.
    pub lack: Option<String>,
}

impl Ids {
    /// One that no other process has.
    pub fn own(id: u32) -> Self {
        Self { id: Some(id), lack: None }
    }

    /// Makes this process, which has one thread, that user.
    pub(crate) fn enter(&self) -> State {
        let user = rustix::process::geteuid();
        if !user.is_root() {
            return State::On(format!("user {}, as this user's other VMs", user.as_raw()));
        }
        let entered = self.id.map(become_user).transpose();
        match (entered, self.id, &self.lack) {
            (Err((doing, error)), _, _) => {
                State::Missing(format!("cannot {doing}: {}", std::io::Error::from(error)))
            }
            (Ok(_), _, Some(lack)) => State::Missing(lack.clone()),
            (Ok(_), Some(id), None) => State::On(format!("user and group {id}")),
            (Ok(_), None, None) => State::Missing("no ID is free for it".into()),
        }
    }
}

/// Makes root the user and the group `id`. What makes namespaces is left to it until capabilities are given up: a host
/// may let no other user make some.
fn become_user(id: u32) -> Result<(), (&'static str, Errno)> {
    let failed = |doing| move |error| (doing, error);
    let (user, group) = (Uid::from_raw(id), Gid::from_raw(id));
    set_thread_groups(&[]).map_err(failed("leave all groups"))?;
    set_thread_res_gid(group, group, group).map_err(failed("become a group of its own"))?;
    set_keep_capabilities(true).map_err(failed("keep capabilities"))?;
    set_thread_res_uid(user, user, user).map_err(failed("become a user of its own"))?;
    let held = rustix::thread::capabilities(None).map_err(failed("read capabilities"))?.permitted;
    let kept = held & CapabilitySet::SYS_ADMIN;
    set_capabilities(
        None,
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() },
    )
    .map_err(failed("set capabilities"))?;
    // It may map itself in a namespace then. No other process is this user.
    set_dumpable_behavior(DumpableBehavior::Dumpable).map_err(failed("own its files in /proc"))
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read, Write};

    use rustix::process::{Pid, test_kill_process};

    use super::*;
    use crate::enter::tests::{become_user as become_ordinary, in_a_process};
    use crate::{Jail, Mode, enter};

    /// Numbers that no user has.
    const ONE: u32 = 2_000_000_201;
    const OTHER: u32 = 2_000_000_202;

    /// Calls `meanwhile` with the ID of a process that `begin` has run in.
    fn beside<T>(begin: impl FnOnce(), meanwhile: impl FnOnce(i32) -> T) -> T {
        let (mut said, mut saying) = io::pipe().unwrap();
        let (mut waiting, release) = io::pipe().unwrap();
        // SAFETY: the new process has one thread, and ends below. It takes memory, which glibc makes possible after a
        // fork.
        let child = unsafe { libc::fork() };
        if child == 0 {
            drop((said, release));
            begin();
            let _ = saying.write_all(b"x");
            let _ = waiting.read(&mut [0]);
            // SAFETY: it ends the process.
            unsafe { libc::_exit(0) };
        }
        drop(saying);
        assert_eq!(said.read(&mut [0]).unwrap(), 1);
        let result = meanwhile(child);
        drop(release);
        // SAFETY: no status is asked for.
        unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
        result
    }

    /// What a process can do to another one: signals, limits, and a look into its memory.
    fn reached(process: i32) -> String {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the call writes to `limit`.
        let limits =
            unsafe { libc::prlimit(process, libc::RLIMIT_CORE, std::ptr::null(), &raw mut limit) } == 0;
        // SAFETY: the call takes numbers.
        let attached = unsafe { libc::ptrace(libc::PTRACE_SEIZE, process, 0, 0) } == 0;
        let signalled = Pid::from_raw(process).is_some_and(|pid| test_kill_process(pid).is_ok());
        format!("signals {signalled}, limits {limits}, memory {attached}")
    }

    fn is_root() -> bool {
        let is_root = rustix::process::geteuid().is_root();
        if !is_root {
            eprintln!("skipped: only root becomes another user");
        }
        is_root
    }

    #[test]
    fn processes_of_different_ids_do_not_reach_each_other() {
        if !is_root() {
            return;
        }
        let give_up = || crate::namespaces::keep_capabilities(CapabilitySet::empty()).unwrap();
        let become_one = |id: u32| {
            assert!(matches!(Ids::own(id).enter(), State::On(_)));
            give_up();
        };
        for (mine, expected) in [
            (OTHER, "signals false, limits false, memory false"),
            (ONE, "signals true, limits true, memory true"),
        ] {
            let text = beside(
                || become_one(ONE),
                |process| {
                    in_a_process(|| {
                        become_one(mine);
                        reached(process)
                    })
                },
            );
            assert_eq!(text, expected);
        }
    }

    #[test]
    fn the_host_sees_the_id_of_a_process_in_its_jail() {
        if !is_root() {
            return;
        }
        let jail = Jail {
            mode: Mode::BestEffort,
            files: Some(100),
            data: None,
            ids: Ids::own(ONE),
            cgroup: State::On(String::new()),
        };
        let status = beside(
            || drop(enter(jail).unwrap()),
            |process| std::fs::read_to_string(format!("/proc/{process}/status")).unwrap(),
        );
        let line = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(line("Uid:"), [ONE.to_string(), ONE.to_string(), ONE.to_string(), ONE.to_string()]);
        assert_eq!(line("Gid:"), line("Uid:"));
        assert_eq!((line("Groups:").len(), line("CapPrm:")), (0, vec!["0000000000000000".to_owned()]));
    }

    #[test]
    fn what_it_lacks_is_said() {
        let shared = Ids { id: Some(ONE), lack: Some("all are in use".into()) };
        let none = Ids { id: None, lack: None };
        let text = in_a_process(|| format!("{:?}, {:?}", none.enter(), shared.enter()));
        let user = in_a_process(|| {
            become_ordinary(65534);
            format!("{:?}", Ids::own(ONE).enter())
        });
        if is_root() {
            assert_eq!(text, "Missing(\"no ID is free for it\"), Missing(\"all are in use\")");
            assert_eq!(user, "On(\"user 65534, as this user's other VMs\")");
        } else {
            assert!(user.starts_with("On"), "{user}");
        }
    }
}
