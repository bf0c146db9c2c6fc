//! How a device asks for the guest's attention.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// One interrupt line, edge-triggered. The vmm gives an eventfd that KVM turns into an interrupt without an
/// exit (irqfd); tests give a counter.
pub trait Interrupt: Send + Sync {
    /// Raises the line once.
    ///
    /// # Errors
    ///
    /// Those of a write to an eventfd.
    fn trigger(&self) -> io::Result<()>;

    /// The eventfd that is the line, for others to write to, where it is one.
    fn eventfd(&self) -> Option<&EventFd> {
        None
    }
}

impl Interrupt for EventFd {
    fn trigger(&self) -> io::Result<()> {
        self.write(1)
    }

    fn eventfd(&self) -> Option<&EventFd> {
        Some(self)
    }
}

/// Counts how often it was raised, for tests.
impl Interrupt for AtomicUsize {
    fn trigger(&self) -> io::Result<()> {
        self.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}
