//! Entering all layers of a process in their order.

use std::io::{self, Read, Write};

use rustix::thread::CapabilitySet;
use thiserror::Error;

use crate::ids::Ids;
use crate::layer::{Layer, Mode, Report, State};
use crate::{landlock, namespaces, process, seccomp};

/// What confinement a process gets.
#[derive(Clone, Debug)]
pub struct Jail {
    /// How much.
    pub mode: Mode,
    /// The most descriptors that it may have; none for as many as it may have already.
    pub files: Option<u64>,
    /// The most bytes of private memory that it may have, beside what files and shared memory take; none where a guest's
    /// RAM is not of a fixed size.
    pub data: Option<u64>,
    /// Who it becomes.
    pub ids: Ids,
    /// The control group that it is in already, or why it is in none.
    pub cgroup: State,
}

/// Why a process could not be confined.
#[derive(Debug, Error)]
pub enum JailError {
    /// Something that every host has.
    #[error("cannot confine the process: {doing}")]
    Host {
        /// What failed.
        doing: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What the host lacks, where all is wanted.
    #[error(
        "--jail strict: this host lacks {0}: `mvm doctor` says how to get it, --jail best-effort does without"
    )]
    Missing(String),
}

/// Confines this process, which has one thread, and has opened all that it needs. Threads that it starts are confined
/// too, but for their system calls, which [`Filter::install`](seccomp::Filter::install) limits in each.
///
/// # Errors
///
/// [`JailError`]: what is left of the process is to end.
pub fn enter(jail: Jail) -> Result<Report, JailError> {
    let mut report = Report { mode: jail.mode, layers: Vec::new() };
    if jail.mode == Mode::Off {
        return Ok(report);
    }
    let mut note = |layer, state| report.layers.push((layer, state));
    note(Layer::Cgroup, jail.cgroup);
    process::set_no_new_privs().map_err(host("set no_new_privs"))?;
    note(Layer::NoNewPrivs, State::On(String::new()));
    let files = process::limit(jail.files, jail.data).map_err(host("set limits"))?;
    let ids = jail.ids.enter();
    // What maps this user in the namespace belongs to root in a process without dumps.
    let unshared = namespaces::unshare();
    process::forbid_dumps().map_err(host("forbid core dumps"))?;
    note(Layer::Dumps, State::On(String::new()));
    let mut limits = format!("{files} open files");
    if let Some(data) = jail.data {
        limits += &format!(", {} MiB of data", data >> 20);
    }
    note(Layer::Limits, State::On(limits));
    note(Layer::Ids, ids);
    let in_words = |(doing, error): (&str, rustix::io::Errno)| {
        State::Missing(format!("cannot {doing}: {}", io::Error::from(error)))
    };
    let (namespaces, root) = match unshared {
        Ok(()) => {
            let root = namespaces::empty_root();
            (
                State::On("user, mount, network, IPC, UTS, cgroup; no capability".into()),
                root.map_or_else(in_words, |()| State::On("empty".into())),
            )
        }
        Err(error) => (in_words(error), State::Missing("it needs namespaces".into())),
    };
    note(Layer::Namespaces, namespaces);
    note(Layer::Root, root);
    note(Layer::Landlock, landlock::deny_all().map_or_else(State::Missing, State::On));
    namespaces::keep_capabilities(CapabilitySet::empty()).map_err(host("give up capabilities"))?;
    note(Layer::Seccomp, seccomp::available().map_or_else(State::Missing, |()| State::On(String::new())));
    report.check()?;
    Ok(report)
}

/// The most bytes of a report.
const MAX_REPORT: u64 = 64 << 10;

/// What this host offers, tried by a process that is made for it, becomes one of `ids` and is said to be in `cgroup`.
///
/// # Errors
///
/// The process could not be made or confined.
pub fn probe(ids: Ids, cgroup: State) -> io::Result<Report> {
    let (said, mut saying) = io::pipe()?;
    // SAFETY: the new process has one thread and ends below. It takes memory, which glibc makes possible after a fork of a
    // process with threads.
    let child = unsafe { libc::fork() };
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    if child == 0 {
        let jail = Jail { mode: Mode::BestEffort, files: Some(16), data: None, ids, cgroup };
        let report = enter(jail).ok().and_then(|report| serde_json::to_vec(&report).ok());
        let written = report.map(|report| saying.write_all(&report));
        // SAFETY: it ends the process.
        unsafe { libc::_exit(i32::from(!matches!(written, Some(Ok(()))))) };
    }
    drop(saying);
    let mut report = Vec::new();
    let read = said.take(MAX_REPORT).read_to_end(&mut report);
    // SAFETY: no status is asked for.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    read?;
    serde_json::from_slice(&report).map_err(|_| io::Error::other("the process ended without a report"))
}

/// Makes a [`JailError::Host`].
pub(crate) fn host(doing: &'static str) -> impl FnOnce(io::Error) -> JailError {
    move |source| JailError::Host { doing, source }
}

impl Report {
    /// Whether all layers hold, where that is asked for.
    ///
    /// # Errors
    ///
    /// [`JailError::Missing`].
    pub fn check(&self) -> Result<(), JailError> {
        let missing: Vec<_> = self.missing().map(|(layer, why)| format!("{layer} ({why})")).collect();
        if self.mode == Mode::Strict && !missing.is_empty() {
            return Err(JailError::Missing(missing.join(", ")));
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use rustix::io::Errno;

    use super::*;
    use crate::seccomp::Rule;

    /// A number that no user has.
    const ID: u32 = 2_000_000_123;

    fn jail(mode: Mode) -> Jail {
        let cgroup = State::On("a group".into());
        Jail { mode, files: Some(100), data: Some(64 << 20), ids: Ids::own(ID), cgroup }
    }

    /// All layers but that of other processes.
    const ENTERED: usize = Layer::ALL.len() - 1;

    /// What `run` writes in a process of its own, where it may change what it is.
    pub(crate) fn in_a_process(run: impl FnOnce() -> String) -> String {
        let (mut said, mut saying) = io::pipe().unwrap();
        // SAFETY: the new process has one thread, and ends below. It takes memory, which glibc makes possible after a fork.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let _ = saying.write_all(run().as_bytes());
            // SAFETY: it ends the process.
            unsafe { libc::_exit(0) };
        }
        drop(saying);
        let mut text = String::new();
        said.read_to_string(&mut text).unwrap();
        // SAFETY: no status is asked for.
        unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
        text
    }

    pub(crate) fn become_user(user: u32) {
        if rustix::process::geteuid().is_root() && user != 0 {
            // SAFETY: the calls take numbers, and this process has one thread.
            unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>()) };
            // SAFETY: as above.
            unsafe { libc::syscall(libc::SYS_setresgid, user, user, user) };
            // SAFETY: as above.
            unsafe { libc::syscall(libc::SYS_setresuid, user, user, user) };
            // As that of a user who has logged in.
            let dumpable = rustix::process::DumpableBehavior::Dumpable;
            rustix::process::set_dumpable_behavior(dumpable).unwrap();
        }
    }

    /// The report, then what still works.
    fn entered(user: u32) -> (Report, Vec<String>) {
        let text = in_a_process(|| {
            become_user(user);
            let root = rustix::fs::open(c"/", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
            let report = match enter(jail(Mode::BestEffort)) {
                Ok(report) => report,
                Err(error) => return error.to_string(),
            };
            let mut works = Vec::new();
            let mut attempt = |name: &str, works_now: bool| {
                if works_now {
                    works.push(name.to_owned());
                }
            };
            attempt("open /etc/passwd", std::fs::File::open("/etc/passwd").is_ok());
            attempt("open /proc/self/status", std::fs::File::open("/proc/self/status").is_ok());
            attempt("open ../etc/passwd", std::fs::File::open("../../etc/passwd").is_ok());
            attempt("write /new", std::fs::File::create("/new").is_ok());
            attempt("execute", std::process::Command::new("/bin/true").status().is_ok());
            attempt(
                "connect",
                std::net::TcpStream::connect("127.0.0.1:1").err().map(|error| error.kind())
                    == Some(io::ErrorKind::ConnectionRefused),
            );
            let mounted =
                rustix::mount::mount(c"x", c"/", c"tmpfs", rustix::mount::MountFlags::empty(), None);
            attempt("mount", mounted.is_ok());
            attempt("host name", rustix::system::sethostname(b"x").is_ok());
            attempt("chroot", rustix::process::chroot(c"/").is_ok());
            let flags = rustix::thread::UnshareFlags::NEWUSER;
            // SAFETY: there is one thread.
            attempt("new user", unsafe { rustix::thread::unshare_unsafe(flags) }.is_ok());
            attempt(
                "dumpable",
                rustix::process::dumpable_behavior().ok()
                    != Some(rustix::process::DumpableBehavior::NotDumpable),
            );
            let files = (0..200).map_while(|_| rustix::io::dup(&root).ok()).collect::<Vec<_>>();
            attempt("200 files", files.len() == 200);
            let memory = Vec::<u8>::new().try_reserve(128 << 20).is_ok();
            attempt("128 MiB", memory);
            format!("{}\n{}", serde_json::to_string(&report).unwrap(), works.join("\n"))
        });
        let (report, works) = text.split_once('\n').unwrap_or_else(|| panic!("{text}"));
        (serde_json::from_str(report).unwrap(), works.lines().map(str::to_owned).collect())
    }

    #[test]
    fn what_is_left_to_a_process_is_what_it_has_open() {
        for user in [0, 65534] {
            let (report, works) = entered(user);
            assert_eq!(
                report.layers.iter().map(|(layer, _)| *layer).collect::<Vec<_>>(),
                Layer::ALL[..ENTERED]
            );
            eprintln!("user {user}: {report:?}");
            let lacks = |layer| report.missing().any(|(missing, _)| missing == layer);
            if lacks(Layer::Namespaces) || lacks(Layer::Root) {
                eprintln!("this host has no namespaces for user {user}: what still works: {works:?}");
                continue;
            }
            // A new namespace of users gives capabilities over nothing here; seccomp forbids it.
            assert!(works.iter().all(|name| name == "new user"), "user {user}: {works:?}");
        }
    }

    #[test]
    fn a_probe_leaves_this_process_as_it_is() {
        let report = probe(Ids::own(ID), State::Missing("none".into())).unwrap();
        assert_eq!(report.layers.len(), ENTERED);
        assert!(report.missing().any(|missing| missing == (Layer::Cgroup, "none")));
        std::fs::File::open("/proc/self/status").unwrap();
    }

    #[test]
    fn off_leaves_everything() {
        let report = enter(jail(Mode::Off)).unwrap();
        assert_eq!(report, Report { mode: Mode::Off, layers: Vec::new() });
        std::fs::File::open("/proc/self/status").unwrap();
    }

    #[test]
    fn strict_names_all_that_is_missing() {
        let text = in_a_process(|| match enter(jail(Mode::Strict)) {
            Ok(report) => format!("missing: {}", report.missing().count()),
            Err(error) => error.to_string(),
        });
        let is_refused = text.starts_with("--jail strict: this host lacks ") && text.contains("mvm doctor");
        assert!(text == "missing: 0" || is_refused, "{text}");
    }

    /// Calls that a host does not have or allow, how they fail there, and the layers that it lacks for that.
    type OldHost = (&'static [Rule], Errno, &'static [Layer]);

    const fn unknown(name: &'static str, call: i64, why: &'static str) -> Rule {
        Rule { name, call, arguments: &[], why }
    }

    const OLD_HOSTS: &[OldHost] = &[
        (
            &[unknown("landlock_create_ruleset", libc::SYS_landlock_create_ruleset, "Linux before 5.13")],
            Errno::NOSYS,
            &[Layer::Landlock],
        ),
        (
            &[unknown("landlock_create_ruleset", libc::SYS_landlock_create_ruleset, "lsm= without landlock")],
            Errno::OPNOTSUPP,
            &[Layer::Landlock],
        ),
        (
            &[unknown("unshare", libc::SYS_unshare, "a container's filter")],
            Errno::PERM,
            &[Layer::Namespaces, Layer::Root],
        ),
        (
            &[unknown("unshare", libc::SYS_unshare, "no CONFIG_USER_NS")],
            Errno::INVAL,
            &[Layer::Namespaces, Layer::Root],
        ),
        (
            &[unknown("unshare", libc::SYS_unshare, "user.max_user_namespaces")],
            Errno::NOSPC,
            &[Layer::Namespaces, Layer::Root],
        ),
        (&[unknown("mount", libc::SYS_mount, "a security module")], Errno::ACCESS, &[Layer::Root]),
        (
            &[unknown("pivot_root", libc::SYS_pivot_root, "a root that is a ramfs")],
            Errno::INVAL,
            &[Layer::Root],
        ),
        (
            &[
                unknown("unshare", libc::SYS_unshare, "a container's filter"),
                unknown("landlock_create_ruleset", libc::SYS_landlock_create_ruleset, "the same"),
            ],
            Errno::PERM,
            &[Layer::Namespaces, Layer::Root, Layer::Landlock],
        ),
    ];

    /// What [`enter`] says to `user` on a host where `calls` fail: the layers that are missing, or the refusal.
    fn on_old_host(mode: Mode, user: u32, calls: &'static [Rule], error: Errno) -> String {
        in_a_process(|| {
            become_user(user);
            let filter = seccomp::Filter::failing("test", calls, error).unwrap();
            rustix::thread::set_no_new_privs(true).unwrap();
            filter.install().unwrap();
            match enter(jail(mode)) {
                Ok(report) => {
                    report.missing().map(|(layer, _)| layer.to_string()).collect::<Vec<_>>().join(" ")
                }
                Err(error) => error.to_string(),
            }
        })
    }

    #[test]
    fn an_old_host_lacks_a_layer_and_strict_names_it() {
        let users: &[u32] = if rustix::process::geteuid().is_root() { &[0, 65534] } else { &[0] };
        for user in users {
            let own = on_old_host(Mode::BestEffort, *user, &[], Errno::PERM);
            for (calls, error, lacks) in OLD_HOSTS {
                let case = format!("user {user}: {}: {error}", calls[0].why);
                let missing = on_old_host(Mode::BestEffort, *user, calls, *error);
                let refusal = on_old_host(Mode::Strict, *user, calls, *error);
                for layer in Layer::ALL {
                    let name = layer.to_string();
                    let is_own = own.split(' ').any(|own| own == name);
                    let is_missing = missing.split(' ').any(|missing| missing == name);
                    assert_eq!(is_missing, is_own || lacks.contains(&layer), "{case}: {name} in {missing:?}");
                    let is_named = refusal.contains(&format!("{name} ("));
                    assert_eq!(is_named, is_missing, "{case}: {name} in {refusal:?}");
                }
                assert!(refusal.starts_with("--jail strict: this host lacks "), "{case}: {refusal}");
            }
        }
    }
}
