//! The process: how it begins and how it ends.
//!
//! Rust's runtime makes 35 system calls for a program with two threads before and after `main`: it looks for the guard
//! page of each thread's stack and gives each a second stack for a handler, which says "stack overflow" where the
//! kernel says "segmentation fault". A VM's start can do without, so the entry is C's, and this does the rest of what
//! the runtime does.

/// What the process ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitCode(u8);

impl From<u8> for ExitCode {
    fn from(code: u8) -> Self {
        Self(code)
    }
}

#[cfg(not(test))]
#[unsafe(no_mangle)]
extern "C" fn main() -> std::ffi::c_int {
    begin();
    let ExitCode(code) = crate::run();
    // It flushes Rust's standard output, which C's exit does not.
    std::process::exit(code.into())
}

/// Sets up the process before anything else is done.
#[cfg_attr(test, expect(dead_code, reason = "the tests have an entry of their own"))]
fn begin() {
    let mut streams = [0, 1, 2].map(|fd| libc::pollfd { fd, events: 0, revents: 0 });
    // SAFETY: the pointer is to three `pollfd`s, which the call fills, as the count says.
    let polled = unsafe { libc::poll(streams.as_mut_ptr(), 3, 0) };
    let closed = |stream: &libc::pollfd| stream.revents & libc::POLLNVAL != 0;
    for _ in streams.iter().filter(|stream| polled > 0 && closed(stream)) {
        // Otherwise a file that mvm opens could get the number of a standard stream, and with it that stream's output.
        // open() uses the lowest free number, which is that of the closed stream.
        // SAFETY: the path is a string of C's.
        unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) };
    }
    // SAFETY: both calls set a number, before there is another thread. A write to a pipe without a reader is then an
    // error. One arena for all threads: another one costs four system calls for each thread, and 132 KiB.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
