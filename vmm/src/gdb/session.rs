//! A client's session, from its connection until it disconnects or the VM ends.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use gdbstub::common::Signal;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{DisconnectReason, GdbStub, GdbStubError, MultiThreadStopReason};

use super::connection::{Connection, Event, wait_at_most, wait_for};
use super::listener::Listener;
use super::stops::Stops;
use super::target::Target;
use crate::ExitReason;
use crate::exit::ExitSlot;
use crate::vcpu::GateError;

/// Until a connection that could not be accepted is tried again.
const RETRY: Duration = Duration::from_millis(200);

/// What the debugger's thread waits for beside its client.
pub(super) struct Session {
    pub(super) exit: Arc<ExitSlot>,
    pub(super) stops: Arc<Stops>,
}

/// How a session ended.
enum Outcome {
    /// The client wants the VM to go on without it, or has gone.
    Left,
    /// The client wants the VM to end.
    Killed,
    /// The VM has ended.
    Ended,
}

/// Serves clients one after the other until the VM ends.
pub(super) fn serve(listener: &Listener, mut target: Target, session: &Session) {
    while let Some(client) = session.next_client(listener) {
        target.halt();
        let outcome = session.serve_client(client, &mut target).unwrap_or_else(|error| {
            tracing::warn!(%error, "the connection to GDB failed");
            Outcome::Left
        });
        match outcome {
            Outcome::Left => target.release(),
            Outcome::Killed => return session.exit.end(ExitReason::Killed),
            Outcome::Ended => return,
        }
    }
}

impl Session {
    /// `None` once the VM has ended.
    fn next_client(&self, listener: &Listener) -> Option<OwnedFd> {
        loop {
            let sources = [Some(self.exit()), Some(listener.as_fd())];
            match wait_for(sources).map(|[ended, _]| ended) {
                Ok(false) => match listener.accept() {
                    Ok(client) => return Some(client),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection of GDB");
                        // Out of descriptors, the listener stays ready.
                        if wait_at_most(self.exit(), RETRY).unwrap_or(true) {
                            return None;
                        }
                    }
                },
                Ok(true) => return None,
                Err(error) => {
                    tracing::error!(%error, "the debugger's thread cannot wait");
                    return None;
                }
            }
        }
    }

    fn exit(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is that of an eventfd, which lives as long as `self`.
        unsafe { BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(self.exit.event())) }
    }

    fn stop_event(&self) -> BorrowedFd<'_> {
        // SAFETY: as above.
        unsafe { BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(self.stops.event())) }
    }

    fn serve_client(
        &self,
        client: OwnedFd,
        target: &mut Target,
    ) -> Result<Outcome, GdbStubError<GateError, io::Error>> {
        let gone = || Ok(Outcome::Left);
        let mut stub = GdbStub::new(Connection::new(client)).run_state_machine(target)?;
        loop {
            stub = match stub {
                GdbStubStateMachine::Idle(mut idle) => match idle.borrow_conn().wait(self.exit(), None) {
                    Ok(Event::Byte(byte)) => idle.incoming_data(target, byte)?,
                    // GDB takes the VM as stopped and asks something: it sees that the connection ends.
                    Ok(Event::Ended) => return Ok(Outcome::Ended),
                    _ => return gone(),
                },
                GdbStubStateMachine::Running(mut running) => {
                    match running.borrow_conn().wait(self.exit(), Some(self.stop_event())) {
                        Ok(Event::Byte(byte)) => running.incoming_data(target, byte)?,
                        Ok(Event::Stopped) => match target.stopped() {
                            Some(reason) => running.report_stop(target, reason)?,
                            None => running.into(),
                        },
                        Ok(Event::Ended) => {
                            running.report_stop(target, last_words(self.exit.reason()))?;
                            return Ok(Outcome::Ended);
                        }
                        _ => return gone(),
                    }
                }
                GdbStubStateMachine::CtrlCInterrupt(interrupt) => {
                    let reason = target.interrupted();
                    interrupt.interrupt_handled(target, Some(reason))?
                }
                GdbStubStateMachine::Disconnected(disconnected) => {
                    return Ok(match disconnected.get_reason() {
                        DisconnectReason::Kill => Outcome::Killed,
                        _ => Outcome::Left,
                    });
                }
            }
        }
    }
}

/// How the VM's end is reported to GDB: the guest exited, or died of a signal.
fn last_words(reason: Option<ExitReason>) -> MultiThreadStopReason<u64> {
    match reason {
        None | Some(ExitReason::PowerOff | ExitReason::Reboot | ExitReason::Stopped | ExitReason::Killed) => {
            MultiThreadStopReason::Exited(0)
        }
        Some(ExitReason::Code(code)) => MultiThreadStopReason::Exited(code),
        Some(ExitReason::TimedOut) => MultiThreadStopReason::Terminated(Signal::SIGTERM),
        Some(ExitReason::Signal(signal)) => {
            MultiThreadStopReason::Terminated(u8::try_from(signal).map_or(Signal::SIGTERM, Signal))
        }
        Some(
            ExitReason::Panicked { .. }
            | ExitReason::MemoryCutOff
            | ExitReason::NotResumed { .. }
            | ExitReason::TripleFault { .. }
            | ExitReason::FailEntry { .. }
            | ExitReason::InternalError { .. }
            | ExitReason::RunFailed { .. },
        ) => MultiThreadStopReason::Terminated(Signal::SIGABRT),
    }
}
