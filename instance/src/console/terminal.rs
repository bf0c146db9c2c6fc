//! The terminal in raw mode, and back again whatever happens.
//!
//! A terminal belongs to its foreground process group. Its modes are changed only while that is this process's: a shell
//! that has taken the terminal back, since mvm was stopped or runs in the background, has modes of its own.

use std::ffi::c_int;
use std::io::{self, IsTerminal};
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// The terminal as it was found.
static FOUND: OnceLock<libc::termios> = OnceLock::new();
/// There is a [`RawTerminal`].
static ENTERED: AtomicBool = AtomicBool::new(false);
/// What is output is not changed either.
static OUTPUT: AtomicBool = AtomicBool::new(false);
/// The terminal is in raw mode now.
static RAW: AtomicBool = AtomicBool::new(false);

/// Signals that end the process for a fault of its own, after which the user still wants to type.
const FATAL: [c_int; 6] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGSYS];

/// Standard input in raw mode: every key, Ctrl-C among them, goes to the guest. Dropping it restores the terminal.
pub struct RawTerminal(());

impl RawTerminal {
    /// Puts standard input in raw mode where this process has the terminal; see [`take_terminal`]. `None` where it is
    /// no terminal.
    ///
    /// # Errors
    ///
    /// Those of reading and setting the terminal's attributes.
    pub fn enter() -> io::Result<Option<Self>> {
        Self::enter_with(false)
    }

    /// The same for output too, as for a terminal of a container's, which has put a carriage return before each line's
    /// end where one belongs. Lines of mvm's own do not begin at the left then.
    ///
    /// # Errors
    ///
    /// As for [`enter`](Self::enter).
    pub fn enter_for_output() -> io::Result<Option<Self>> {
        Self::enter_with(true)
    }

    fn enter_with(output: bool) -> io::Result<Option<Self>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        restore_on_fatal_signals()?;
        OUTPUT.store(output, Ordering::SeqCst);
        ENTERED.store(true, Ordering::SeqCst);
        take_terminal()?;
        Ok(Some(Self(())))
    }
}

/// Whether the terminal of standard input is this process's to read and to change: its foreground process group is that
/// of this process, or it is not the terminal of this session, so that no shell shares it. True where there is no
/// terminal. Safe to call from a signal handler.
pub fn in_foreground() -> bool {
    // SAFETY: neither call touches memory.
    unsafe {
        match libc::tcgetpgrp(libc::STDIN_FILENO) {
            -1 => true,
            group => group == libc::getpgrp(),
        }
    }
}

/// Sets raw mode again where there is a [`RawTerminal`] and this process has the terminal, also where a shell has set
/// other modes meanwhile, as after fg(1). Where it has not, what was set before is the shell's business from now on.
/// Returns whether it has the terminal.
///
/// # Errors
///
/// Those of reading and setting the terminal's attributes.
pub fn take_terminal() -> io::Result<bool> {
    if !in_foreground() {
        RAW.store(false, Ordering::SeqCst);
        return Ok(false);
    }
    if !ENTERED.load(Ordering::SeqCst) {
        return Ok(true);
    }
    let mut attributes = MaybeUninit::<libc::termios>::uninit();
    // SAFETY: the pointer is to space for the attributes, which the call fills where it returns 0.
    let attributes = unsafe {
        check(libc::tcgetattr(libc::STDIN_FILENO, attributes.as_mut_ptr()))?;
        attributes.assume_init()
    };
    let mut raw = *FOUND.get_or_init(|| attributes);
    // SAFETY: the attributes are initialized.
    unsafe { libc::cfmakeraw(&raw mut raw) };
    if !OUTPUT.load(Ordering::SeqCst) {
        // It stays as it was, so that mvm's own lines begin at the left.
        raw.c_oflag |= libc::OPOST;
    }
    RAW.store(true, Ordering::SeqCst);
    // SAFETY: the attributes are initialized.
    check(unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &raw const raw) })?;
    Ok(true)
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        ENTERED.store(false, Ordering::SeqCst);
        restore();
    }
}

/// Puts the terminal back as it was found, if this process has it in raw mode. Safe to call from a signal handler and
/// from a panic hook, and more than once.
pub fn restore() {
    if RAW.swap(false, Ordering::SeqCst)
        && in_foreground()
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
