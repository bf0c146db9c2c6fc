//! `mvm kill`.

use std::time::Duration;

use clap::Args;
use instance::api::{Action, ActionType, State, VmUpdate, WantedState};
use instance::{Archive, Entry, Kept, Kind, OpenProcess, Registry, Running};
use rustix::process::Signal;

use crate::process::ExitCode;
use crate::stop::end_keeper;
use crate::targets::{self, Failure};
use crate::{events, run};

/// How long a VM has to end and clean up, which takes milliseconds, before its process is killed.
const DEADLINE: Duration = Duration::from_secs(5);

/// How long the agent of a container's guest has for each step of killing it.
const AGENT: Duration = Duration::from_secs(3);

/// How long the agent has to write what is in memory to the disks, and to power the VM off.
const WRITING: Duration = Duration::from_secs(10);

const EXAMPLES: &str = "\
Examples:
  mvm kill web
  mvm kill --signal USR1 web";

/// Arguments of `mvm kill`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct KillCommand {
    /// IDs, beginnings of IDs, or names
    #[arg(required = true, value_name = "NAME")]
    vms: Vec<String>,

    /// Signal to send: a name as in USR1, or a number from 1 to 64
    ///
    /// KILL ends it at once. A container's command gets any other one. A VM's power button is pressed by HUP, INT, QUIT
    /// and TERM, and the VM ended when they are sent again; its process gets CONT and STOP.
    #[arg(long, short, value_name = "SIGNAL", default_value = "KILL", value_parser = signal)]
    signal: u8,
}

/// The signals of a VM besides KILL.
const OF_VMS: [Signal; 6] =
    [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM, Signal::CONT, Signal::STOP];

impl KillCommand {
    /// Ends the VMs and containers, or signals them.
    pub fn run(self) -> ExitCode {
        let is_kill = i32::from(self.signal) == libc::SIGKILL;
        let registry = Registry::of_user();
        targets::each_word(&self.vms, |word| {
            if is_kill && let Some(kept) = targets::kept(word).ok().filter(Kept::is_saved) {
                return run::discard(&kept);
            }
            let found = targets::find(&registry, word);
            if let (Err(Failure::Restarting(_)), Ok(kept)) = (&found, targets::kept(word))
                && (is_kill || self.signal == stop_signal(&kept.entry))
            {
                // Its keeper waits, and starts it no more.
                Archive::of_user()?.set_stopped(&kept.entry.id, true)?;
                events::note(&kept.entry, "kill", &[("signal", &self.signal.to_string())]);
                return end_keeper(&kept.entry.process);
            }
            let vm = &found?;
            targets::check_pod(vm)?;
            events::note_of(vm.record.id.as_str(), "kill", &[("signal", &self.signal.to_string())]);
            if let Ok(kept) = targets::kept(vm.record.id.as_str())
                && (is_kill || self.signal == stop_signal(&kept.entry))
            {
                // It is not started again.
                Archive::of_user()?.set_stopped(&kept.entry.id, true)?;
            }
            if is_kill { kill(vm) } else { send(vm, self.signal) }
        })
    }
}

/// The signal that asks a container to end.
pub fn stop_signal(entry: &Entry) -> u8 {
    let name = entry.details.pointer("/Config/StopSignal").and_then(serde_json::Value::as_str);
    name.and_then(container::signal_number).unwrap_or(15)
}

/// Sends a signal to a container's command, or what it stands for to a VM.
pub fn send(vm: &Running, number: u8) -> Result<(), Failure> {
    let id = vm.record.id.as_str();
    let entry = targets::kept(id).map(|kept| kept.entry).ok().filter(|entry| entry.kind == Kind::Container);
    if let Some(entry) = entry.as_ref().filter(|entry| entry.started.is_some()) {
        container::send_signal(&vm.directory, id, number)?;
        if resumes(entry, number) {
            resume_in_pod(vm);
        }
        return Ok(());
    }
    // The keeper of a container that has not started yet ends it.
    let signal = OF_VMS.into_iter().find(|signal| signal.as_raw() == i32::from(number));
    match (signal, entry) {
        // Those of the process itself are for that in which the guest runs, the others for the one that keeps it.
        (Some(signal @ (Signal::CONT | Signal::STOP)), None) => {
            Ok(vm.record.running_process().open()?.signal(signal)?)
        }
        (Some(signal), _) => Ok(vm.record.process.open()?.signal(signal)?),
        (None, Some(_)) => Err(Failure::NotStarted),
        (None, None) => Err(Failure::Signal),
    }
}

/// Whether a paused container goes on for that signal, as with docker: where the image or the user says which one ends
/// it, for that one alone.
fn resumes(entry: &Entry, number: u8) -> bool {
    let own = entry.details.pointer("/Config/StopSignal").and_then(serde_json::Value::as_str);
    own.is_none() || number == stop_signal(entry)
}

/// Has a paused container of a pod go on, so that it gets its signal. One that has ended by it is no error.
pub fn resume_in_pod(vm: &Running) {
    let id = vm.record.id.as_str();
    if container::pod_directory(&vm.directory).is_some()
        && container::is_frozen(&vm.directory, id).unwrap_or(false)
    {
        let _ = container::freeze(&vm.directory, id, false);
    }
}

/// Kills a container, or ends a VM through its control socket, so that it restores the terminal and removes its
/// directory; kills its process where it does not answer. That of a container is not the one that keeps it, which notes
/// the end then.
pub fn kill(vm: &Running) -> Result<(), Failure> {
    let process = vm.record.process.open()?;
    if container::pod_directory(&vm.directory).is_some() {
        return kill_in_pod(vm, &process);
    }
    if kill_in_guest(vm, &process) {
        return Ok(());
    }
    let mut client = targets::quick_client(vm);
    let asked = match &mut client {
        Ok(client) => client.send("PUT", "/actions", &Action { action_type: ActionType::Kill }).is_ok(),
        Err(_) => false,
    };
    if asked && process.wait(Some(DEADLINE)) {
        return Ok(());
    }
    // As the keeper has noted it: a guest that has taken it over can have another process listen at its socket.
    let killed = vm.record.running_process().open().is_ok_and(|vm| vm.signal(Signal::KILL).is_ok());
    if !killed || !process.wait(Some(DEADLINE)) {
        process.signal(Signal::KILL)?;
        if !process.wait(Some(DEADLINE)) {
            return Err(Failure::Unkillable);
        }
    }
    Ok(())
}

/// Kills a container that has started in its guest, whose agent then writes to the disks what is not there yet: what
/// the container wrote before it was killed is kept, as where it has no VM. Returns whether its VM has ended by that,
/// which it does in milliseconds; a guest that does not do it is waited for no longer than some seconds.
fn kill_in_guest(vm: &Running, process: &OpenProcess) -> bool {
    let id = vm.record.id.as_str();
    let has_started = targets::kept(id)
        .is_ok_and(|kept| kept.entry.kind == Kind::Container && kept.entry.started.is_some());
    // One that is stopped does not say so.
    let state = if has_started { targets::state(&vm.directory) } else { None };
    let runs = match state {
        Some(State::Paused) => {
            let resumed = VmUpdate { state: WantedState::Resumed };
            targets::quick_client(vm).is_ok_and(|mut client| client.send("PATCH", "/vm", &resumed).is_ok())
        }
        Some(_) => true,
        None => false,
    };
    if !runs {
        return false;
    }
    match container::kill_within(&vm.directory, id, AGENT) {
        Ok(()) => process.wait(Some(WRITING)),
        // It may have ended meanwhile.
        Err(error) => {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "cannot kill the container in its guest"
            );
            false
        }
    }
}

/// Kills a container of a pod: its keeper notes the end. Where the pod's VM does not answer its keeper is killed, with
/// which it ends too.
fn kill_in_pod(vm: &Running, process: &OpenProcess) -> Result<(), Failure> {
    let number = u8::try_from(libc::SIGKILL).unwrap_or_default();
    let asked = container::send_signal(&vm.directory, vm.record.id.as_str(), number).is_ok();
    if asked && process.wait(Some(DEADLINE)) {
        return Ok(());
    }
    process.signal(Signal::KILL)?;
    if process.wait(Some(DEADLINE)) { Ok(()) } else { Err(Failure::Unkillable) }
}

/// Reads a signal, by name or number.
pub fn signal(text: &str) -> Result<u8, String> {
    let unknown = || format!("unknown signal {text:?}: use a name such as TERM, or a number from 1 to 64");
    container::signal_number(text).ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command};

    use instance::Process;
    use serde_json::json;

    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for text in ["15", "TERM", "sigterm"] {
            assert_eq!(signal(text), Ok(15), "{text}");
        }
        for text in ["", "SIG", "0", "65", "99", "FOO", "RTMIN+31"] {
            assert!(signal(text).unwrap_err().contains("TERM"), "{text}");
        }
    }

    /// The process, as a record names it.
    fn named(child: &Child) -> Process {
        Process::child_of(&Process::own().unwrap(), i32::try_from(child.id()).unwrap()).unwrap()
    }

    #[test]
    fn who_listens_at_the_control_socket_of_a_vm_is_not_killed_in_its_place() {
        let directory = tempfile::tempdir().unwrap();
        // This process, which does not answer.
        let _listener = UnixListener::bind(directory.path().join("control.sock")).unwrap();
        let program = || Command::new("sleep").arg("infinity").spawn().unwrap();
        let (mut keeper, mut process) = (program(), program());
        let record = json!({
            "id": "0123456789ab", "name": null, "created": 0,
            "process": named(&keeper), "vm_process": named(&process),
            "config": { "cpus": 1, "memory": 1 << 20, "kernel": "/k", "rootfs": null },
        });
        let record = serde_json::from_value(record).unwrap();
        let vm = Running { record, directory: directory.path().to_owned() };
        // A keeper ends once its VM has.
        let ended = std::thread::spawn(move || {
            let code = process.wait().unwrap();
            keeper.kill().unwrap();
            keeper.wait().unwrap();
            code.signal()
        });
        kill(&vm).unwrap();
        assert_eq!(ended.join().unwrap(), Some(libc::SIGKILL));
    }
}
