//! What somebody would try who has taken this process over. Tests have it try, with the feature `attack`,
//! which no release has.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// What to try: a name, and after a colon a path.
pub const VARIABLE: &str = "MVM_TEST_ATTACK";

/// Tries what the variable names, and says what came of it.
///
/// # Errors
///
/// What came of it.
pub fn attempt() -> Result<(), String> {
    let Ok(attack) = std::env::var(VARIABLE) else { return Ok(()) };
    let (name, argument) = attack.split_once(':').unwrap_or((&attack, ""));
    Err(match run(name, Path::new(argument)) {
        Ok(()) => "the attack succeeded".to_owned(),
        Err(error) => format!("the attack failed: {error}"),
    })
}

fn run(name: &str, path: &Path) -> io::Result<()> {
    let beside = Path::new("attack");
    match name {
        "read" => File::open(path).map(drop),
        "write" => fs::write(path, "attack"),
        "append" => fs::OpenOptions::new().append(true).open(path).map(drop),
        "remove" => fs::remove_file(path),
        "directory" => fs::create_dir(path),
        "rename" => fs::rename(path, beside),
        "connect" => std::net::TcpStream::connect("127.0.0.1:1").map(drop),
        "execute" => std::process::Command::new("/bin/true").status().map(drop),
        _ => system_call(name),
    }
}

/// System calls of which each is refused whatever its arguments are.
fn system_call(name: &str) -> io::Result<()> {
    // Some process that is there.
    let other = 1;
    let path = c"/tmp".as_ptr() as i64;
    let own = i64::from(std::process::id());
    let (call, arguments): (_, [i64; 6]) = match name {
        "ptrace" => (libc::SYS_ptrace, [16, other, 0, 0, 0, 0]),
        "kill" => (libc::SYS_kill, [other, 0, 0, 0, 0, 0]),
        "kill-thread" => (libc::SYS_tgkill, [other, other, 0, 0, 0, 0]),
        "pidfd" => (libc::SYS_pidfd_open, [other, 0, 0, 0, 0, 0]),
        "read-memory" => (libc::SYS_process_vm_readv, [other, 0, 0, 0, 0, 0]),
        "write-memory" => (libc::SYS_process_vm_writev, [other, 0, 0, 0, 0, 0]),
        "fork" => (libc::SYS_clone, [17, 0, 0, 0, 0, 0]),
        "clone3" => (libc::SYS_clone3, [0; 6]),
        "execve" => (libc::SYS_execve, [0; 6]),
        "execveat" => (libc::SYS_execveat, [0; 6]),
        "mount" => (libc::SYS_mount, [path, path, 0, 4096, 0, 0]),
        "unshare" => (libc::SYS_unshare, [0x1000_0000, 0, 0, 0, 0, 0]),
        "chroot" => (libc::SYS_chroot, [path, 0, 0, 0, 0, 0]),
        "bpf" => (libc::SYS_bpf, [0; 6]),
        "perf" => (libc::SYS_perf_event_open, [0; 6]),
        "ring" => (libc::SYS_io_uring_setup, [1, 0, 0, 0, 0, 0]),
        "key" => (libc::SYS_keyctl, [0; 6]),
        "userfault" => (libc::SYS_userfaultfd, [0; 6]),
        "memfd" => (libc::SYS_memfd_create, [path, 0, 0, 0, 0, 0]),
        "handle" => (libc::SYS_open_by_handle_at, [0; 6]),
        "chmod" => (libc::SYS_chmod, [path, 0o777, 0, 0, 0, 0]),
        "chown" => (libc::SYS_chown, [path, 0, 0, 0, 0, 0]),
        "truncate" => (libc::SYS_truncate, [path, 0, 0, 0, 0, 0]),
        "attribute" => (libc::SYS_setxattr, [path, 0, 0, 0, 0, 0]),
        "dumpable" => (libc::SYS_prctl, [4, 1, 0, 0, 0, 0]),
        "limit" => (libc::SYS_prlimit64, [own, 7, 0, 0, 0, 0]),
        "handler" => (libc::SYS_rt_sigaction, [31, 0, 0, 8, 0, 0]),
        "map" => (libc::SYS_mmap, [0, 4096, 5, 0x22, -1, 0]),
        "protect" => (libc::SYS_mprotect, [0, 4096, 5, 0, 0, 0]),
        "listen" => (libc::SYS_listen, [1, 1, 0, 0, 0, 0]),
        "bind" => (libc::SYS_bind, [1, 0, 0, 0, 0, 0]),
        "packets" => (libc::SYS_socket, [17, 3, 0, 0, 0, 0]),
        "unix" => (libc::SYS_socket, [1, 1, 0, 0, 0, 0]),
        "netlink" => (libc::SYS_socket, [16, 3, 0, 0, 0, 0]),
        "internet" => (libc::SYS_socket, [2, 1, 0, 0, 0, 0]),
        _ => return Err(io::Error::other("it is unknown")),
    };
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: none of these calls changes this process's memory where it is made after all.
    let result = unsafe { libc::syscall(call, a, b, c, d, e, f) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
