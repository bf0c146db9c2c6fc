//! The exit codes of mvm. They are part of its interface: README.md lists them.

use vmm::{ExitReason, Failure, Fault};

/// The guest powered off or rebooted without an exit code of its own, or the user stopped it from the console or a
/// debugger.
pub const SUCCESS: u8 = 0;
/// There is no such VM, or the command failed for it.
pub const FAILURE: u8 = 1;
/// Wrong usage or configuration.
pub const USAGE: u8 = 2;
/// The host cannot run the VM.
pub const HOST: u8 = 3;
/// The guest crashed.
pub const GUEST: u8 = 4;
/// `--timeout` expired.
pub const TIMED_OUT: u8 = 124;
/// mvm itself could not run a container.
pub const CONTAINER: u8 = 125;
/// A container's command can't be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// A container has no such command.
pub const NOT_FOUND: u8 = 127;
/// Added to the number of the signal that stopped the VM, as shells do.
const SIGNAL: u8 = 128;

/// The exit code for how a VM ended.
pub fn of_exit(reason: &ExitReason) -> u8 {
    match reason {
        ExitReason::PowerOff | ExitReason::Reboot | ExitReason::Stopped | ExitReason::Killed => SUCCESS,
        ExitReason::Code(code) => *code,
        ExitReason::TimedOut => TIMED_OUT,
        ExitReason::NotResumed { .. } => HOST,
        ExitReason::Panicked { .. }
        | ExitReason::TripleFault { .. }
        | ExitReason::FailEntry { .. }
        | ExitReason::InternalError { .. }
        | ExitReason::RunFailed { .. }
        | ExitReason::MemoryCutOff => GUEST,
        ExitReason::Signal(signal) => of_signal(*signal),
    }
}

/// The exit code after `signal`.
pub fn of_signal(signal: i32) -> u8 {
    SIGNAL.saturating_add(u8::try_from(signal).unwrap_or(u8::MAX))
}

/// The exit code for a VM that could not be built, or was ended by force.
pub fn of_failure(failure: &Failure) -> u8 {
    match failure.fault {
        Fault::User => USAGE,
        Fault::Host => HOST,
        Fault::Guest => GUEST,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_has_its_code() {
        assert_eq!(of_exit(&ExitReason::Reboot), 0);
        assert_eq!(of_exit(&ExitReason::Panicked { message: None, hint: None }), 4);
        assert_eq!(of_exit(&ExitReason::TripleFault { vcpu: 0, at: None, hint: None }), 4);
        assert_eq!(of_exit(&ExitReason::Signal(15)), 143);
        assert_eq!(of_exit(&ExitReason::TimedOut), 124);
        assert_eq!(of_exit(&ExitReason::Code(7)), 7);
    }
}
