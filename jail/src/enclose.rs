//! Confinement of a process that goes on to work with files of the host: those of some directories.

use rustix::thread::CapabilitySet;

use crate::enter::{JailError, host};
use crate::landlock::{self, Reach};
use crate::layer::{Layer, Mode, Report, State};
use crate::{namespaces, process, seccomp};

/// What is left to a process.
#[derive(Clone, Debug)]
pub struct Enclosure {
    /// How much confinement is asked for.
    pub mode: Mode,
    /// The most descriptors that it may have.
    pub files: u64,
    /// The most bytes of private memory that it may have.
    pub data: u64,
    /// What it reaches by paths.
    pub reach: Reach,
    /// The working directory becomes the root, where this process may do that.
    pub is_in_root: bool,
    /// The capabilities that it keeps of those that it has.
    pub capabilities: CapabilitySet,
}

/// Confines this process, which has one thread. Threads that it starts are confined too, but for their system calls,
/// which [`seccomp::Filter::install_for_all`] limits.
///
/// # Errors
///
/// [`JailError`]: what is left of the process is to end.
pub fn enclose(enclosure: &Enclosure) -> Result<Report, JailError> {
    let mut report = Report { mode: enclosure.mode, layers: Vec::new() };
    if enclosure.mode == Mode::Off {
        return Ok(report);
    }
    let mut note = |layer, state| report.layers.push((layer, state));
    process::set_no_new_privs().map_err(host("set no_new_privs"))?;
    note(Layer::NoNewPrivs, State::On(String::new()));
    process::forbid_dumps().map_err(host("forbid core dumps"))?;
    note(Layer::Dumps, State::On(String::new()));
    let files = process::limit(Some(enclosure.files), Some(enclosure.data)).map_err(host("set limits"))?;
    let limits = format!("{files} open files, {} MiB of data", enclosure.data >> 20);
    note(Layer::Limits, State::On(limits));
    // Rules are made of paths of the host: the root comes after them.
    let landlock = landlock::deny_all_but(&enclosure.reach);
    if enclosure.is_in_root && namespaces::may_change_root() {
        namespaces::change_root().map_err(host("make the working directory the root"))?;
        note(Layer::Root, State::On("the working directory".into()));
    }
    note(Layer::Landlock, landlock.map_or_else(State::Missing, State::On));
    namespaces::keep_capabilities(enclosure.capabilities).map_err(host("give up capabilities"))?;
    note(Layer::Seccomp, seccomp::available().map_or_else(State::Missing, |()| State::On(String::new())));
    report.check()?;
    Ok(report)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io;
    use std::path::Path;

    use tempfile::TempDir;

    use super::*;
    use crate::enter::tests::{become_user, in_a_process};

    /// What still works for a process of this user that is left a directory, a file and a list of names.
    fn enclosed(user: u32, connects: bool) -> (Report, Vec<String>) {
        let place = TempDir::new().unwrap();
        let path = |name: &str| place.path().join(name);
        for directory in ["own", "listed", "own/sub"] {
            fs::create_dir(path(directory)).unwrap();
        }
        for file in ["readable", "secret", "listed/secret", "own/file"] {
            fs::write(path(file), "text").unwrap();
        }
        for name in ["", "own", "own/sub", "own/file", "listed", "readable", "secret"] {
            std::os::unix::fs::chown(path(name), Some(user), Some(user)).unwrap();
        }
        let reach = Reach {
            written: vec![path("own"), path("missing")],
            files: vec![path("readable")],
            listed: vec![path("listed")],
            connects,
            ..Reach::default()
        };
        let enclosure = Enclosure {
            mode: Mode::BestEffort,
            files: 100,
            data: 64 << 20,
            reach,
            is_in_root: false,
            capabilities: CapabilitySet::empty(),
        };
        let text = in_a_process(|| {
            become_user(user);
            let report = match enclose(&enclosure) {
                Ok(report) => report,
                Err(error) => return error.to_string(),
            };
            let mut works = Vec::new();
            let mut attempt = |name: &str, works_now: bool| {
                if works_now {
                    works.push(name.to_owned());
                }
            };
            attempt("read own", fs::read(path("own/file")).is_ok());
            attempt("read readable", fs::read(path("readable")).is_ok());
            attempt("list", fs::read_dir(path("listed")).is_ok());
            attempt("rename", fs::rename(path("own/file"), path("own/sub/file")).is_ok());
            attempt("make", fs::write(path("own/new"), "text").is_ok());
            attempt("remove", fs::remove_file(path("own/new")).is_ok());
            attempt("connect", connects && refused(&std::net::TcpStream::connect("127.0.0.1:1")));
            attempt("read listed", File::open(path("listed/secret")).is_ok());
            attempt("write readable", fs::write(path("readable"), "x").is_ok());
            attempt("read secret", File::open(path("own/../secret")).is_ok());
            attempt("read /etc/passwd", File::open("/etc/passwd").is_ok());
            attempt("make beside", File::create(path("beside")).is_ok());
            attempt("remove beside", fs::remove_file(path("secret")).is_ok());
            attempt("rename out", fs::rename(path("own/sub/file"), path("out")).is_ok());
            attempt("rename in", fs::rename(path("secret"), path("own/in")).is_ok());
            attempt("link in", fs::hard_link(path("secret"), path("own/in")).is_ok());
            attempt("make through link", through_link(&path("own/link"), &path("beside")));
            attempt("execute", std::process::Command::new("/bin/true").status().is_ok());
            attempt("serve", std::net::TcpListener::bind("127.0.0.1:0").is_ok());
            attempt("connect out", !connects && refused(&std::net::TcpStream::connect("127.0.0.1:1")));
            attempt("change root", rustix::process::chroot(c"/").is_ok());
            format!("{}\n{}", serde_json::to_string(&report).unwrap(), works.join("\n"))
        });
        let (report, works) = text.split_once('\n').unwrap_or_else(|| panic!("{text}"));
        (serde_json::from_str(report).unwrap(), works.lines().map(str::to_owned).collect())
    }

    fn refused(connected: &io::Result<std::net::TcpStream>) -> bool {
        connected.as_ref().err().map(io::Error::kind) == Some(io::ErrorKind::ConnectionRefused)
    }

    fn through_link(link: &Path, target: &Path) -> bool {
        std::os::unix::fs::symlink(target, link).is_ok() && File::create(link).is_ok()
    }

    #[test]
    fn what_is_left_is_what_was_named() {
        let users: &[u32] = if rustix::process::geteuid().is_root() { &[0, 65534] } else { &[] };
        let own = rustix::process::geteuid().as_raw();
        for user in users.iter().copied().chain(users.is_empty().then_some(own)) {
            for connects in [false, true] {
                let (report, works) = enclosed(user, connects);
                eprintln!("user {user}: {report:?}");
                if report.missing().any(|(layer, _)| layer == Layer::Landlock) {
                    eprintln!("this host has no Landlock: what still works: {works:?}");
                    continue;
                }
                let mut expected = vec!["read own", "read readable", "list", "rename", "make", "remove"];
                expected.extend(connects.then_some("connect"));
                // Landlock knows of TCP from its fourth version on.
                let works: Vec<_> = works
                    .iter()
                    .filter(|name| landlock::knows_tcp() || !["serve", "connect out"].contains(&&name[..]))
                    .collect();
                assert_eq!(works, expected, "user {user}, connects {connects}");
            }
        }
    }

    #[test]
    fn root_is_left_in_its_directory() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: only root changes its root");
        }
        let place = TempDir::new().unwrap();
        fs::write(place.path().join("file"), "text").unwrap();
        let enclosure = Enclosure {
            mode: Mode::BestEffort,
            files: 100,
            data: 64 << 20,
            reach: Reach { written: vec![place.path().to_owned()], ..Reach::default() },
            is_in_root: true,
            capabilities: CapabilitySet::CHOWN,
        };
        let text = in_a_process(|| {
            std::env::set_current_dir(place.path()).unwrap();
            enclose(&enclosure).unwrap();
            let path = |name: &str| Path::new("/../..").join(name);
            let has = (path("file").exists(), path("etc").exists(), File::create("/new").is_ok());
            let owned = std::os::unix::fs::chown("/new", Some(12), Some(34)).is_ok();
            let has_left = rustix::process::chroot(c"/").is_ok();
            format!("{has:?} {owned} {has_left}")
        });
        assert_eq!(text, "(true, false, true) true false");
        assert!(place.path().join("new").exists());
    }
}
