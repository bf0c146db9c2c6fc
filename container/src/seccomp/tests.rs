use std::collections::BTreeSet;

use serde_json::Value;

use super::*;

/// What an instruction is, for the interpreter below (`linux/bpf_common.h`).
const LD_W_ABS: u16 = 0x20;
const ALU_AND_K: u16 = 0x54;
const JMP_JA: u16 = 0x05;

/// What the program says to a call: as the kernel would run it.
fn run(program: &[u8], number: i64, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(i32::try_from(number).unwrap().to_le_bytes());
    data.extend(0xc000_003e_u32.to_le_bytes());
    data.extend(0_u64.to_le_bytes());
    args.iter().for_each(|arg| data.extend(arg.to_le_bytes()));
    let (instructions, rest) = program.as_chunks::<8>();
    assert!(rest.is_empty());
    let (mut at, mut a) = (0_usize, 0_u32);
    loop {
        let [c0, c1, jt, jf, k0, k1, k2, k3] = instructions[at];
        let (code, k) = (u16::from_le_bytes([c0, c1]), u32::from_le_bytes([k0, k1, k2, k3]));
        let jump = |taken: bool| usize::from(if taken { jt } else { jf });
        at += 1;
        match code {
            LD_W_ABS => {
                let place = usize::try_from(k).unwrap();
                a = u32::from_le_bytes(data[place..place + 4].try_into().unwrap());
            }
            ALU_AND_K => a &= k,
            JMP_JA => at += usize::try_from(k).unwrap(),
            0x15 => at += jump(a == k),
            0x25 => at += jump(a > k),
            0x35 => at += jump(a >= k),
            0x06 => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Answer {
    Allow,
    Errno(u32),
}

/// What both programs together say: the more severe answer, and of two errors that of the one which was loaded last.
fn answer(programs: &[Vec<u8>], number: i64, args: [u64; 6]) -> Answer {
    let answers = programs.iter().rev().map(|program| run(program, number, args));
    let severity = |answer: &u32| answer & 0xffff_0000;
    // The first of the least.
    let worst = answers.min_by_key(severity).unwrap();
    match worst >> 16 {
        0x7fff => Answer::Allow,
        5 => Answer::Errno(worst & 0xffff),
        other => panic!("answer {other:#x}"),
    }
}

const DEFAULT: [&str; 3] = ["SYS_CHROOT", "AUDIT_WRITE", "NET_RAW"];

fn by_default() -> Vec<Vec<u8>> {
    programs(|name| DEFAULT.contains(&name)).unwrap()
}

#[test]
fn calls_are_allowed_by_their_arguments() {
    let programs = by_default();
    let call = |number, args| answer(&programs, number, args);
    let refused = Answer::Errno(1);
    assert_eq!(call(libc::SYS_read, [0; 6]), Answer::Allow);
    assert_eq!(call(libc::SYS_mount, [0; 6]), refused);
    assert_eq!(call(libc::SYS_socket, [2, 1, 0, 0, 0, 0]), Answer::Allow);
    assert_eq!(call(libc::SYS_socket, [40, 1, 0, 0, 0, 0]), refused);
    assert_eq!(call(libc::SYS_clone, [0x1200011, 0, 0, 0, 0, 0]), Answer::Allow);
    assert_eq!(call(libc::SYS_clone, [0x1000_0000, 0, 0, 0, 0, 0]), refused);
    assert_eq!(call(libc::SYS_personality, [0x2_0000, 0, 0, 0, 0, 0]), Answer::Allow);
    assert_eq!(call(libc::SYS_personality, [1, 0, 0, 0, 0, 0]), refused);
    assert_eq!(call(libc::SYS_clone3, [0; 6]), Answer::Errno(38));
    assert_eq!(call(463, [0; 6]), Answer::Errno(38));
    assert_eq!(call(462, [0; 6]), refused);
    // The x32 form of read(2).
    assert_eq!(call(0x4000_0000, [0; 6]), refused);
}

#[test]
fn capabilities_allow_more() {
    let programs = programs(|_| true).unwrap();
    for number in [libc::SYS_mount, libc::SYS_clone3, libc::SYS_bpf, libc::SYS_reboot, libc::SYS_init_module]
    {
        assert_eq!(answer(&programs, number, [0; 6]), Answer::Allow, "{number}");
    }
    assert_eq!(answer(&programs, libc::SYS_socket, [40, 1, 0, 0, 0, 0]), Answer::Errno(1));
    assert_eq!(answer(&programs, libc::SYS_kexec_load, [0; 6]), Answer::Errno(1));
}

/// Calls that podman's profile allows to every container, and docker's does not.
const PODMAN_ALONE: [&str; 25] = [
    "add_key",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "get_mempolicy",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "keyctl",
    "mbind",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "pidfd_getfd",
    "pivot_root",
    "reboot",
    "request_key",
    "set_mempolicy",
    "setns",
    "syslog",
    "umount2",
    "unshare",
    "clone3",
];
/// Calls that docker's profile allows, and podman's of that time did not know.
const DOCKER_ALONE: [&str; 2] = ["fchmodat2", "futex_waitv"];

#[test]
fn the_table_is_that_of_podman_but_for_what_docker_refuses() {
    let path = "/usr/share/containers/seccomp.json";
    let Ok(text) = std::fs::read_to_string(path) else {
        return eprintln!("skipped: there is no {path} (package golang-github-containers-common)");
    };
    let profile: Value = serde_json::from_str(&text).unwrap();
    let is_empty = |value: &Value| value.as_array().is_none_or(Vec::is_empty);
    let mut theirs = BTreeSet::new();
    for rule in profile["syscalls"].as_array().unwrap() {
        let arches = &rule["includes"]["arches"];
        let is_ours = is_empty(arches) || arches.as_array().unwrap().iter().any(|arch| arch == "amd64");
        let is_plain = is_empty(&rule["args"]) && is_empty(&rule["includes"]["caps"]);
        if rule["action"] == "SCMP_ACT_ALLOW" && is_ours && is_plain {
            theirs.extend(rule["names"].as_array().unwrap().iter().filter_map(Value::as_str));
        }
    }
    let programs = programs(|_| false).unwrap();
    let named = ALLOWED.iter().chain(WITH_CAPABILITY.iter().flat_map(|(_, calls)| *calls));
    let plain = |name: &'static str| name.trim_start_matches("SYS_");
    for (name, number) in named {
        let name = plain(name);
        let ours = answer(&programs, *number, [0; 6]) == Answer::Allow;
        let expected = DOCKER_ALONE.contains(&name) || theirs.contains(name) && !PODMAN_ALONE.contains(&name);
        assert_eq!(ours, expected, "{name}");
    }
    // What they allow and the table does not have are calls of other architectures, and docker's refusals.
    let table: BTreeSet<_> = ALLOWED.iter().map(|(name, _)| plain(name)).collect();
    let header = std::fs::read_to_string("/usr/include/x86_64-linux-gnu/asm/unistd_64.h").unwrap_or_default();
    for name in theirs.difference(&table).filter(|name| !["socket", "clone", "personality"].contains(name)) {
        let exists =
            header.lines().any(|line| line.split_whitespace().nth(1) == Some(&format!("__NR_{name}")));
        assert!(!exists || PODMAN_ALONE.contains(name) || is_refused(name), "{name} is missing");
    }
}

/// Calls that docker never allows.
fn is_refused(name: &str) -> bool {
    const REFUSED: [&str; 8] =
        ["move_pages", "swapoff", "swapon", "sysfs", "uselib", "userfaultfd", "ustat", "nfsservctl"];
    REFUSED.contains(&name)
}
