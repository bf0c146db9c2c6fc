//! The process that pulls and loads, once somebody has taken it over: what is left to it.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use jail::seccomp::{Filter, Rule};
use rstest::rstest;

use crate::place::{Place, fails, succeeds, text};
use crate::worker::assets;

/// What the process is asked to try (`cli/src/images/worker/attack.rs`), with the feature `attack`.
const VARIABLE: &str = "MVM_TEST_ATTACK";

/// Whether this host has a Landlock that mvm uses.
fn has_landlock() -> bool {
    const ASK_VERSION: u32 = 1;
    // SAFETY: without attributes the call takes no memory.
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, ASK_VERSION)
    };
    version >= 2
}

fn attacked(mut mvm: Command, attack: &str, code: i32) -> String {
    fails(mvm.env(VARIABLE, attack), code)
}

/// The line that says which system call it was.
fn ended(call: &str, suspect: &str) -> String {
    format!(
        "the process that does it was ended, as it made the system call {call}, which it never needs: the {suspect} \
         may be hostile, or mvm has a fault (SECURITY.md says how to report it)\n"
    )
}

#[rstest]
#[case("execve", "execve")]
#[case("execveat", "execveat")]
#[case("fork", "clone")]
#[case("ptrace", "ptrace")]
#[case("kill", "kill")]
#[case("kill-thread", "tgkill")]
#[case("pidfd", "pidfd_open")]
#[case("read-memory", "process_vm_readv")]
#[case("write-memory", "process_vm_writev")]
#[case("mount", "mount")]
#[case("unshare", "unshare")]
#[case("chroot", "chroot")]
#[case("bpf", "bpf")]
#[case("perf", "perf_event_open")]
#[case("ring", "io_uring_setup")]
#[case("key", "keyctl")]
#[case("userfault", "userfaultfd")]
#[case("memfd", "memfd_create")]
#[case("handle", "open_by_handle_at")]
#[case("chmod", "chmod")]
#[case("chown", "chown")]
#[case("truncate", "truncate")]
#[case("attribute", "setxattr")]
#[case("dumpable", "prctl")]
#[case("limit", "prlimit64")]
#[case("handler", "rt_sigaction")]
#[case("map", "mmap")]
#[case("protect", "mprotect")]
#[case("listen", "listen")]
#[case("bind", "bind")]
#[case("packets", "socket")]
fn no_job_makes_a_system_call_that_it_does_not_need(#[case] attack: &str, #[case] call: &str) {
    let place = Place::new();
    fs::write(place.path("archive"), "no archive").unwrap();
    let load = place.mvm(&["load", "-i", "archive"]);
    assert_eq!(attacked(load, attack, 1), format!("mvm: {}", ended(call, "image")));
    let image = "127.0.0.1:1/a:1";
    let expected = format!("mvm: cannot pull {image}: {}", ended(call, "image"));
    assert_eq!(attacked(place.mvm(&["pull", image]), attack, 1), expected);
    for directory in ["tmp", "images", "layers", "partial"] {
        assert_eq!(place.stored(directory).len(), 0, "{directory}");
    }
}

#[test]
fn only_jobs_with_registries_have_sockets() {
    let place = Place::new();
    fs::write(place.path("archive"), "no archive").unwrap();
    for attack in ["connect", "internet", "unix", "netlink"] {
        let load = place.mvm(&["load", "-i", "archive"]);
        assert_eq!(attacked(load, attack, 1), format!("mvm: {}", ended("socket", "image")));
        let import = place.mvm(&["import", "archive"]);
        let expected = format!("mvm: cannot import archive: {}", ended("socket", "archive"));
        assert_eq!(attacked(import, attack, 1), expected);
    }
    for (attack, expected) in [
        ("connect", "the attack failed: Connection refused (os error 111)\n"),
        ("internet", "the attack succeeded\n"),
        ("unix", "the attack failed: Address family not supported by protocol (os error 97)\n"),
        ("netlink", "the attack failed: Address family not supported by protocol (os error 97)\n"),
        ("clone3", "the attack failed: Function not implemented (os error 38)\n"),
    ] {
        let line = attacked(place.mvm(&["pull", "127.0.0.1:1/a:1"]), attack, 1);
        assert!(line.ends_with(expected), "{attack}: {line}");
    }
}

#[test]
fn files_beside_the_store_are_out_of_reach() {
    if !has_landlock() {
        return eprintln!("skipped: this host has no Landlock");
    }
    let place = Place::new();
    for name in ["archive", "secret", "data/beside"] {
        fs::create_dir_all(place.path(name).parent().unwrap()).unwrap();
        fs::write(place.path(name), "secret").unwrap();
    }
    let denied = "the attack failed: Permission denied (os error 13)\n";
    let path = |name: &str| place.path(name).display().to_string();
    for job in [&["load", "-i", "archive"][..], &["import", "archive"], &["pull", "127.0.0.1:1/a:1"]] {
        for attack in [
            "read:/etc/passwd".to_owned(),
            "read:/proc/self/environ".to_owned(),
            "read:/proc/1/environ".to_owned(),
            format!("read:{}", path("secret")),
            format!("read:{}", path("archive")),
            format!("read:{}", path("data/images/../beside")),
            format!("append:{}", path("secret")),
            format!("write:{}", path("new")),
            format!("write:{}", path("data/new")),
            format!("remove:{}", path("secret")),
            format!("directory:{}", path("new")),
        ] {
            let line = attacked(place.mvm(job), &attack, 1);
            assert!(line.ends_with(denied), "{job:?} {attack}: {line}");
        }
        let line = attacked(place.mvm(job), &format!("rename:{}", path("secret")), 1);
        assert!(line.contains("the attack failed: "), "{job:?}: {line}");
        let line = attacked(place.mvm(job), &format!("write:{}", path("data/images/tmp/new")), 1);
        assert!(line.ends_with("the attack succeeded\n"), "{job:?}: {line}");
    }
    assert!(!place.path("new").exists() && !place.path("data/new").exists());
    assert_eq!(fs::read(place.path("secret")).unwrap(), b"secret");
}

#[test]
fn a_run_that_pulls_ends_with_125() {
    if fs::File::open("/dev/kvm").is_err() {
        return eprintln!("skipped: there is no /dev/kvm");
    }
    let place = Place::new();
    let image = "127.0.0.1:1/a:1";
    let mut mvm = place.mvm(&["run", "--network", "none", image]);
    mvm.env("MVM_ASSETS", assets(&place)).env(VARIABLE, "execve");
    let output = mvm.output().unwrap();
    assert_eq!(output.status.code(), Some(125), "{}", text(&output));
    let expected = format!("mvm: pulling {image}\nmvm: cannot pull {image}: {}", ended("execve", "image"));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), expected);
}

/// The other tests here fail where nothing is confined.
#[test]
fn the_configuration_file_says_how_much_is_confined() {
    let place = Place::new();
    fs::write(place.path("archive"), "no archive").unwrap();
    fs::create_dir_all(place.path("home/.config/mvm")).unwrap();
    let load = |mode: &str, attack: &str| {
        fs::write(place.path("home/.config/mvm/config.toml"), format!("jail = '{mode}'\n")).unwrap();
        attacked(place.mvm(&["load", "-i", "archive"]), attack, 1)
    };
    for attack in ["read:/etc/passwd", "internet", "map"] {
        assert_eq!(load("off", attack), "mvm: the attack succeeded\n");
    }
    assert_eq!(load("best-effort", "internet"), format!("mvm: {}", ended("socket", "image")));
    let strict = load("strict", "internet");
    if has_landlock() {
        assert_eq!(strict, format!("mvm: {}", ended("socket", "image")));
    } else {
        assert!(strict.starts_with("mvm: jail = \"strict\""), "{strict}");
    }
}

/// A host without Landlock, which is this one where its calls are unknown: the rest holds.
#[test]
fn a_host_without_landlock_works_as_before() {
    const LANDLOCK: &[Rule] = &[Rule {
        name: "landlock_create_ruleset",
        call: libc::SYS_landlock_create_ruleset,
        arguments: &[],
        why: "a kernel from before it",
    }];
    let place = Place::new();
    place.archive(&[1000]);
    let load = |attack: Option<&str>| {
        let filter = Filter::failing("test", LANDLOCK, rustix::io::Errno::NOSYS).unwrap();
        let mut load = place.mvm(&["load", "-i", "archive.tar"]);
        load.envs(attack.map(|attack| (VARIABLE, attack)));
        // SAFETY: the new process has one thread, and makes system calls alone.
        unsafe {
            load.pre_exec(move || {
                rustix::thread::set_no_new_privs(true)?;
                filter.install().map_err(std::io::Error::other)
            });
        }
        load
    };
    assert_eq!(succeeds(&mut load(None)), "Loaded image: local:1\n");
    place.check_store(1);
    assert_eq!(fails(&mut load(Some("execve")), 1), format!("mvm: {}", ended("execve", "image")));
    assert_eq!(fails(&mut load(Some("internet")), 1), format!("mvm: {}", ended("socket", "image")));
    assert_eq!(fails(&mut load(Some("read:/etc/passwd")), 1), "mvm: the attack succeeded\n");
    fs::create_dir_all(place.path("home/.config/mvm")).unwrap();
    fs::write(place.path("home/.config/mvm/config.toml"), "jail = 'strict'\n").unwrap();
    let refused = fails(&mut load(None), 1);
    let expected = "mvm: jail = \"strict\" in the configuration file: this host lacks landlock (this kernel has no \
                    Landlock, or it is off (lsm=)); \"best-effort\" does without\n";
    assert_eq!(refused, expected);
}

#[test]
fn a_release_has_no_attacks() {
    let Some(program) = std::env::var_os("MVM_BIN").filter(|path| Path::new(path).is_file()) else {
        return eprintln!("skipped: MVM_BIN names no release");
    };
    let has_attacks = |program: &Path| {
        let program = fs::read(program).unwrap();
        program.windows(VARIABLE.len()).any(|bytes| bytes == VARIABLE.as_bytes())
    };
    assert!(
        has_attacks(Path::new(env!("CARGO_BIN_EXE_mvm"))),
        "what is looked for is not in the program with attacks"
    );
    assert!(!has_attacks(Path::new(&program)));
}
