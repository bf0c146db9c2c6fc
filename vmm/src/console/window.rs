//! The user's window: how large it is, and how a virtio console hears of it.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, PoisonError};

use devices::virtio::console::{Console, WindowSize};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use instance::Signals;
use rustix::termios::tcgetwinsize;

/// The size of the window that standard output or standard input is in; zeros where neither is in one.
pub(super) fn size() -> WindowSize {
    let of = |fd| tcgetwinsize(fd).ok();
    of(rustix::stdio::stdout())
        .or_else(|| of(rustix::stdio::stdin()))
        .map_or_else(WindowSize::default, |size| WindowSize { columns: size.ws_col, rows: size.ws_row })
}

/// Tells a console when the window has changed.
pub(super) struct WindowWatcher {
    signals: Signals,
    console: Arc<Mutex<Console>>,
}

impl WindowWatcher {
    /// A watcher for `console`. The signal is blocked for this thread and those that it will start.
    ///
    /// # Errors
    ///
    /// Those of the system calls.
    pub(super) fn new(console: Arc<Mutex<Console>>) -> std::io::Result<Self> {
        Ok(Self { signals: Signals::block(&[libc::SIGWINCH])?, console })
    }

    fn tell(&self) {
        self.console.lock().unwrap_or_else(PoisonError::into_inner).resize(size());
    }
}

impl MutEventSubscriber for WindowWatcher {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new_raw(self.signals.as_fd().as_raw_fd(), EventSet::IN)) {
            tracing::warn!(%error, "cannot tell the guest the terminal's size");
        }
        // It may have changed since the device was made.
        self.tell();
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        while self.signals.next().is_some() {}
        self.tell();
    }
}
