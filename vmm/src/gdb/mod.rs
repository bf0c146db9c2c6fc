//! Debugging a guest with GDB, which sees each vCPU as a thread.
//!
//! One thread serves one client at a time. While it talks with a client, the vCPUs stand at the gate or go as the
//! client says; a vCPU that meets a breakpoint tells it through [`Stops`]. Without a client the guest runs freely,
//! except before its first instruction, where it waits for the first client.

mod breakpoints;
mod connection;
mod listener;
mod memory;
mod session;
mod stops;
mod target;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use vm_memory::GuestMemoryMmap;

use crate::exit::ExitSlot;
use crate::vcpu::Gate;

pub use listener::{GdbError, Listener};
pub use stops::Stops;

/// The thread that serves debuggers. It ends with the VM.
pub struct GdbServer {
    thread: Option<JoinHandle<()>>,
    exit: Arc<ExitSlot>,
}

impl GdbServer {
    /// Serves `listener`. The vCPUs of `gate` have started, and wait there for the first client.
    ///
    /// # Errors
    ///
    /// Those of starting a thread.
    pub fn start(
        listener: Listener,
        stops: Arc<Stops>,
        gate: Arc<Gate>,
        memory: Arc<GuestMemoryMmap>,
        exit: Arc<ExitSlot>,
    ) -> io::Result<Self> {
        let target = target::Target::new(gate, memory, stops.clone());
        let session = session::Session { exit: exit.clone(), stops };
        let thread = devices::thread("gdb").spawn(move || session::serve(&listener, target, &session))?;
        Ok(Self { thread: Some(thread), exit })
    }
}

impl Drop for GdbServer {
    fn drop(&mut self) {
        // It looks for the VM's end wherever it waits, and tells the client.
        self.exit.end(crate::ExitReason::Stopped);
        if let Some(thread) = self.thread.take() {
            // Where it panicked, it has ended as well.
            let _ = thread.join();
        }
    }
}
