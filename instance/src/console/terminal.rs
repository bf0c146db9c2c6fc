//! The terminal in raw mode, and back again whatever happens.

use std::ffi::c_int;
use std::io::{self, IsTerminal};
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// The terminal as it was found.
static FOUND: OnceLock<libc::termios> = OnceLock::new();
/// The terminal is in raw mode now.
static RAW: AtomicBool = AtomicBool::new(false);

/// Signals that end the process for a fault of its own, after which the user still wants to type.
const FATAL: [c_int; 6] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGSYS];

/// Standard input in raw mode: every key, Ctrl-C among them, goes to the guest. Dropping it restores the terminal.
pub struct RawTerminal(());

impl RawTerminal {
    /// Puts standard input in raw mode; `None` where it is no terminal.
    ///
    /// # Errors
    ///
    /// Those of reading and setting the terminal's attributes.
    pub fn enter() -> io::Result<Option<Self>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        let mut attributes = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: the pointer is to space for the attributes, which the call fills where it returns 0.
        let mut attributes = unsafe {
            check(libc::tcgetattr(libc::STDIN_FILENO, attributes.as_mut_ptr()))?;
            attributes.assume_init()
        };
        FOUND.get_or_init(|| attributes);
        restore_on_fatal_signals()?;
        // SAFETY: the attributes are initialized.
        unsafe { libc::cfmakeraw(&raw mut attributes) };
        // Output stays as it was, so that mvm's own lines begin at the left.
        attributes.c_oflag |= libc::OPOST;
        RAW.store(true, Ordering::SeqCst);
        // SAFETY: the attributes are initialized.
        check(unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &raw const attributes) })?;
        Ok(Some(Self(())))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal back as it was found, if it is in raw mode. Safe to call from a signal handler and from a
/// panic hook, and more than once.
pub fn restore() {
    if RAW.swap(false, Ordering::SeqCst)
        && let Some(found) = FOUND.get()
    {
        // SAFETY: the attributes are those that the terminal had; tcsetattr is async-signal-safe.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, found) };
    }
}

extern "C" fn on_fatal_signal(signal: c_int) {
    restore();
    // SAFETY: the handler was reset before it was called (SA_RESETHAND), so the signal now does what it did
    // without it: it ends the process.
    unsafe { libc::raise(signal) };
}

fn restore_on_fatal_signals() -> io::Result<()> {
    for signal in FATAL {
        // SAFETY: all-zero bytes are a valid `sigaction`, and the handler calls async-signal-safe functions only.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_fatal_signal as extern "C" fn(c_int) as usize;
            action.sa_flags = libc::SA_RESETHAND | libc::SA_NODEFER | libc::SA_ONSTACK;
            check(libc::sigaction(signal, &raw const action, std::ptr::null_mut()))?;
        }
    }
    Ok(())
}

fn check(result: c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
