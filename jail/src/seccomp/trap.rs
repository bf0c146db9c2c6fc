//! What happens to a process that makes a system call which it may not.

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

use serde::{Deserialize, Serialize};

use super::SeccompError;

/// The exit code of a process that was ended so.
pub const EXIT_CODE: i32 = 159;
/// The most bytes of a report.
const MOST: usize = 160;

/// Which call of which thread it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// The kind of the thread.
    pub thread: String,
    /// The number of the system call.
    pub call: i64,
}

impl Violation {
    /// Reads a report; `None` where it is not one.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (call, thread) = text.strip_suffix('\n')?.split_once(' ')?;
        let is_name = |thread: &str| thread.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        let call = call.parse().ok()?;
        (is_name(thread) && thread.len() < MOST / 2).then(|| Self { thread: thread.to_owned(), call })
    }
}

thread_local! {
    /// The kind of this thread. It takes no memory when it is first used, so that a signal handler may.
    static KIND: Cell<&'static str> = const { Cell::new("") };
}

/// The kind of the threads that have none of their own.
static PROCESS: OnceLock<&'static str> = OnceLock::new();
/// Where reports go.
static REPORTS: AtomicI32 = AtomicI32::new(-1);

/// Names all threads of this process in reports.
pub(super) fn name_process(kind: &'static str) {
    let _ = PROCESS.set(kind);
}

/// The name of this thread, as a signal handler may ask for it.
fn name() -> &'static str {
    match KIND.get() {
        "" => PROCESS.get().copied().unwrap_or("unknown"),
        kind => kind,
    }
}

/// Names this thread in reports.
pub(super) fn name_thread(kind: &'static str) {
    KIND.set(kind);
}

/// Lets this thread, and those that it starts, take SIGSYS: where the signal is blocked, the process is killed without
/// a report.
///
/// # Errors
///
/// Those of pthread_sigmask(3).
pub fn may_trap() -> io::Result<()> {
    let mut signals = MaybeUninit::uninit();
    // SAFETY: the first call initializes the set, which the others use.
    let error = unsafe {
        libc::sigemptyset(signals.as_mut_ptr());
        libc::sigaddset(signals.as_mut_ptr(), libc::SIGSYS);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, signals.as_ptr(), std::ptr::null_mut())
    };
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

/// Has violations reported to `reports`, as one write each, which [`Violation::parse`] reads. It stays open for as long
/// as the process lives, and should not block. This thread and those that it starts from now on may trap.
///
/// # Errors
///
/// [`SeccompError::Handler`].
pub fn report_to(reports: OwnedFd) -> Result<(), SeccompError> {
    REPORTS.store(reports.into_raw_fd(), Ordering::SeqCst);
    // SAFETY: all fields may be zero, and the call reads the structure, which lives until it returns. The handler makes
    // system calls alone.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let handler: extern "C" fn(libc::c_int, *const libc::siginfo_t, *const libc::c_void) = handle;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut())
    };
    if result != 0 {
        return Err(SeccompError::Handler(io::Error::last_os_error()));
    }
    may_trap().map_err(SeccompError::Handler)
}

/// The beginning of `siginfo_t` for SIGSYS (sigaction(2)).
#[repr(C)]
struct Information {
    signal: i32,
    error: i32,
    code: i32,
    _padding: i32,
    address: usize,
    call: i32,
    _architecture: u32,
}

extern "C" fn handle(
    _signal: libc::c_int,
    information: *const libc::siginfo_t,
    _context: *const libc::c_void,
) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO a whole siginfo_t, which for SIGSYS begins so.
    let call = unsafe { (*information.cast::<Information>()).call };
    let mut line = Line { bytes: [0; MOST], length: 0 };
    line.number(call);
    line.text(b" ");
    line.text(name().as_bytes());
    line.text(b"\n");
    // SAFETY: the bytes live until the call returns; the other call ends the process.
    unsafe {
        libc::write(REPORTS.load(Ordering::SeqCst), line.bytes.as_ptr().cast(), line.length);
        libc::_exit(EXIT_CODE);
    }
}

/// A line that is made without memory.
struct Line {
    bytes: [u8; MOST],
    length: usize,
}

impl Line {
    fn text(&mut self, text: &[u8]) {
        for byte in text {
            if let Some(place) = self.bytes.get_mut(self.length) {
                *place = *byte;
                self.length += 1;
            }
        }
    }

    fn number(&mut self, number: i32) {
        let mut digits = [0; 10];
        let mut rest = number.unsigned_abs();
        let mut count = 0;
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + u8::try_from(rest % 10).unwrap_or_default();
            rest /= 10;
            count += 1;
            if rest == 0 {
                break;
            }
        }
        if number < 0 {
            self.text(b"-");
        }
        self.text(digits.get(digits.len() - count..).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(call: i32, kind: &str) -> Vec<u8> {
        let mut line = Line { bytes: [0; MOST], length: 0 };
        line.number(call);
        line.text(b" ");
        line.text(kind.as_bytes());
        line.text(b"\n");
        line.bytes[..line.length].to_vec()
    }

    #[test]
    fn reports_are_read_as_they_are_written() {
        for call in [0, 7, 41, 1000, i32::MAX, -1, i32::MIN] {
            let violation = Violation::parse(&line(call, "vcpu")).unwrap();
            assert_eq!(violation, Violation { thread: "vcpu".into(), call: call.into() });
        }
    }

    #[test]
    fn what_is_no_report_is_not_taken_for_one() {
        let long = format!("1 {}\n", "a".repeat(100));
        let bad: [&[u8]; 8] =
            [b"", b"\n", b"41 vcpu", b"vcpu 41\n", b"41 a\x1bb\n", b"41 a b\n", b"\xff \n", long.as_bytes()];
        for bytes in bad {
            assert_eq!(Violation::parse(bytes), None, "{bytes:?}");
        }
    }
}
