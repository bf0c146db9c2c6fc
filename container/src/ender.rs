//! Ending a container by force, in its own VM or in that of a pod.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vmm::VmProcess;

/// Ends a container.
#[derive(Clone)]
pub enum Ender {
    /// With its VM.
    Vm(Arc<VmProcess>),
    /// One of several in a VM, by what it was started on: the agent kills it when that is closed.
    Control(Arc<Control>),
}

/// The connection to the agent that a container was started on.
#[derive(Default)]
pub struct Control {
    socket: Mutex<Option<UnixStream>>,
    /// The signal that first ended it; 0 before.
    ended_by: AtomicI32,
}

impl Ender {
    /// Ends it, by a signal or since it is not needed any more.
    pub fn end(&self, signal: Option<i32>) {
        match self {
            Self::Vm(vm) => vm.end(signal),
            Self::Control(control) => control.end(signal),
        }
    }
}

impl Control {
    /// It is this connection. Returns whether it is still wanted.
    pub fn set(&self, socket: UnixStream) -> bool {
        *self.socket.lock().unwrap_or_else(PoisonError::into_inner) = Some(socket);
        self.ended_by().is_none()
    }

    fn end(&self, signal: Option<i32>) {
        // There is no signal that asks for it.
        let signal = signal.unwrap_or(libc::SIGKILL);
        let _ = self.ended_by.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst);
        if let Some(socket) = &*self.socket.lock().unwrap_or_else(PoisonError::into_inner) {
            // The agent has closed it, if this fails.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// The signal that ended it.
    pub fn ended_by(&self) -> Option<i32> {
        Some(self.ended_by.load(Ordering::SeqCst)).filter(|signal| *signal != 0)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_connection_is_closed_by_the_first_signal_whenever_it_comes() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let control = Arc::new(Control::default());
        let ender = Ender::Control(control.clone());
        assert!(control.set(near) && control.ended_by().is_none());
        ender.end(Some(libc::SIGTERM));
        ender.end(Some(libc::SIGINT));
        assert_eq!((far.read(&mut [0]).unwrap(), control.ended_by()), (0, Some(libc::SIGTERM)));
        let early = Arc::new(Control::default());
        Ender::Control(early.clone()).end(None);
        assert!(!early.set(UnixStream::pair().unwrap().0));
        assert_eq!(early.ended_by(), Some(libc::SIGKILL));
    }
}
