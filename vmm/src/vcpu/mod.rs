//! A vCPU: its thread, its exits, and how it is stopped.

mod counters;
mod exits;
mod gate;
mod kick;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use devices::Bus;
use kvm_bindings::kvm_debug_exit_arch;
use kvm_ioctls::VcpuFd;
use thiserror::Error;

use crate::exit::{ExitReason, ExitSlot};
use crate::timing::{Phase, Timeline};

pub use counters::ExitCounters;
pub use gate::{Gate, GateError, Holder};

/// What all vCPU threads of a VM share.
pub struct VcpuShared {
    /// The I/O ports.
    pub ports: Bus,
    /// The physical addresses outside RAM.
    pub mmio: Bus,
    /// Where the VM's end is said; no vCPU enters the guest once it is.
    pub exit: Arc<ExitSlot>,
    /// Where vCPUs are kept out of the guest for a while.
    pub gate: Arc<Gate>,
    /// Where a debugger learns of what it waits for, if there is one.
    pub debugger: Option<Arc<dyn DebugHook>>,
    /// Where the first entry is marked.
    pub timeline: Arc<Timeline>,
}

/// How vCPU threads report to a debugger.
pub trait DebugHook: Send + Sync {
    /// Reports that the calling vCPU stopped. All others are stopped with it.
    fn report(&self, vcpu: usize, cause: kvm_debug_exit_arch);
    /// Reports the end of a step of the calling vCPU, if it is on one, because of an access to a device: KVM says
    /// nothing of a step whose instruction it had to leave the guest for.
    fn accessed(&self, vcpu: usize);
}

/// Why a vCPU thread could not be started.
#[derive(Debug, Error)]
pub enum VcpuError {
    /// The signal that stops it could not be set up.
    #[error("cannot set up the signal that stops vCPUs")]
    Signal(#[source] io::Error),
    /// The thread could not be made.
    #[error("cannot start the thread of vCPU {id}")]
    Thread {
        /// Which vCPU.
        id: u32,
        /// The host's refusal.
        #[source]
        source: io::Error,
    },
}

/// What a failure of KVM_RUN with EFAULT means.
const NO_PAGE: &str = "the host has no page for an address that the guest used (EFAULT); was the file \
                       that it comes from cut off, of a template, a snapshot or --pmem, or is its storage full or failing?";

/// What EAGAIN means that does not end.
const REFUSED: &str =
    "KVM refuses to run it (EAGAIN); does this user have as many processes as it may (ulimit -u)?";
/// How often in a row KVM_RUN may return EAGAIN. A vCPU that waits to be started does so each time it is woken, having
/// waited in between; KVM that cannot have the thread it wants, which it asks for at the first run, does so at once and
/// without end.
const MOST_REFUSALS: u32 = 1000;

/// The running vCPUs of a VM.
pub struct Vcpus {
    threads: Vec<JoinHandle<()>>,
    shared: Arc<VcpuShared>,
}

impl Vcpus {
    /// Starts a thread for each vCPU, which counts its exits in what comes with it; the first of `vcpus` is the boot vCPU.
    ///
    /// # Errors
    ///
    /// [`VcpuError`]; threads that were started are stopped.
    pub fn start(
        vcpus: Vec<(VcpuFd, Arc<ExitCounters>)>,
        shared: Arc<VcpuShared>,
    ) -> Result<Self, VcpuError> {
        kick::install().map_err(VcpuError::Signal)?;
        let mut started = Self { threads: Vec::new(), shared };
        // The boot vCPU comes last, so that those which it calls are there.
        for (id, (vcpu, counters)) in (0_u32..).zip(vcpus).collect::<Vec<_>>().into_iter().rev() {
            let shared = started.shared.clone();
            shared.gate.expect(id as usize);
            let thread = devices::thread(&format!("vcpu{id}"))
                .spawn(move || run(id, vcpu, &counters, &shared))
                .map_err(|source| VcpuError::Thread { id, source })?;
            started.threads.push(thread);
        }
        Ok(started)
    }
}

impl Drop for Vcpus {
    /// Stops all vCPUs and waits until the last of them has ended. One that never leaves a device is the supervisor's
    /// business, which ends the process.
    fn drop(&mut self) {
        self.shared.exit.end(ExitReason::Stopped);
        self.shared.gate.end();
        for thread in self.threads.drain(..) {
            // A vCPU thread that panicked has ended as well.
            let _ = thread.join();
        }
    }
}

fn run(id: u32, mut vcpu: VcpuFd, counters: &ExitCounters, shared: &VcpuShared) {
    let _registration = kick::Registration::new(&mut vcpu);
    let index = id as usize;
    let _present = shared.gate.enter(index);
    if shared.gate.holds(index) {
        shared.gate.park_before_start(index, &mut vcpu);
    }
    if id == 0 {
        shared.timeline.mark(Phase::FirstInstruction);
    }
    let run = std::ptr::from_mut(vcpu.get_kvm_run()).cast_const();
    // SAFETY: the mapping lives as long as the vCPU, and this is called for an exit of KVM_EXIT_IO alone, for which
    // KVM has filled this member of the union.
    let io_size = || usize::from(unsafe { (*run).__bindgen_anon_1.io.size });
    let mut refusals = 0;
    while !shared.exit.has_ended() {
        if shared.gate.holds(index) {
            // The access whose exit was handled last becomes part of the registers with the next KVM_RUN, which
            // then returns before the guest goes on (KVM API, KVM_RUN); a second access of the same instruction
            // comes first.
            vcpu.set_kvm_immediate_exit(1);
        }
        let reason = match vcpu.run() {
            Ok(exit) => {
                refusals = 0;
                counters.count(&exit);
                match exits::handle(exit, index, io_size, shared) {
                    exits::Next::Enter => continue,
                    exits::Next::End(end) => exits::reason(end, id, &mut vcpu),
                }
            }
            Err(error) => match error.errno() {
                errno @ (libc::EINTR | libc::EAGAIN) if refusals < MOST_REFUSALS => {
                    refusals = if errno == libc::EAGAIN { refusals + 1 } else { 0 };
                    counters.interrupted_exits.increment();
                    vcpu.set_kvm_immediate_exit(0);
                    if shared.gate.holds(index) {
                        shared.gate.park(index, &mut vcpu);
                    }
                    continue;
                }
                libc::EFAULT => ExitReason::RunFailed { vcpu: id, detail: NO_PAGE.to_owned() },
                libc::EAGAIN => ExitReason::RunFailed { vcpu: id, detail: REFUSED.to_owned() },
                _ => ExitReason::RunFailed { vcpu: id, detail: error.to_string() },
            },
        };
        shared.exit.end(reason);
        break;
    }
}
