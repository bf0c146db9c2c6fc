//! What ends a VM, and when its process is gone.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use instance::api::{Action, ActionType, InstanceInfo, State, VmUpdate, WantedState};
use rustix::io::ioctl_fionread;
use rustix::pipe::fcntl_getpipe_size;
use rustix::process::{Resource, Rlimit, Signal, setrlimit};

use crate::vm::{ENDS, FORCED_END, IDLE, Place, TALKS, TALKS_AND_ENDS, Vm, WATCHDOG, text};

#[test]
fn sigterm_says_what_it_does_and_ends_by_force() {
    let Some(place) = Place::new(IDLE) else { return };
    let vm = place.start(&["--stop-timeout", "1s"]);
    vm.signal(Signal::TERM);
    let (code, errors) = vm.finish();
    assert_eq!(code, Some(143), "{errors}");
    for line in [
        "mvm: SIGTERM: pressed the power button; forcing in 1 s\n",
        "mvm: the guest did not power off in 1 s: ended by force\n",
    ] {
        assert!(errors.contains(line), "{errors}");
    }
    assert!(place.is_clean());
}

#[test]
fn a_second_request_ends_it_at_once_and_signals_at_once_are_no_second_request() {
    let Some(place) = Place::new(IDLE) else { return };
    let mut vm = place.start(&["--stop-timeout", "1h"]);
    let mut errors = BufReader::new(vm.0.stderr.take().unwrap());
    let start = Instant::now();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::TERM] {
        vm.signal(signal);
    }
    let mut said = String::new();
    while !said.contains("pressed the power button") {
        assert!(errors.read_line(&mut said).unwrap() > 0, "{said}");
    }
    // A second after the first request it is the second one, and no sooner, however often it comes.
    while vm.0.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < WATCHDOG, "mvm does not end");
        vm.signal(Signal::INT);
        // Time is what makes a request the second one.
        std::thread::sleep(Duration::from_millis(50));
    }
    errors.read_to_string(&mut said).unwrap();
    assert_eq!(vm.wait().code(), Some(130), "{said}");
    assert!(start.elapsed() > Duration::from_secs(1));
    assert_eq!(said.matches("pressed the power button").count(), 1, "{said}");
}

#[test]
fn a_signal_at_any_moment_of_the_start_leaves_nothing_behind() {
    let Some(place) = Place::new(IDLE) else { return };
    let sockets = ["v", "g"].map(|name| place.path(name));
    for milliseconds in (0..60).step_by(3) {
        let mut boot = place.boot(&["--stop-timeout", "0s"]);
        boot.arg("--vsock").arg(&sockets[0]).arg("--gdb").arg(&sockets[1]);
        let mut vm = Vm(boot.spawn().unwrap());
        // At another moment each time, whatever the process is at then.
        std::thread::sleep(Duration::from_millis(milliseconds));
        vm.signal(Signal::INT);
        let status = vm.wait();
        // Before it takes signals it has nothing.
        assert!(status.code() == Some(130) || status.signal() == Some(libc::SIGINT), "{status}");
        let left: Vec<_> = sockets.iter().filter(|path| path.exists()).collect();
        assert!(place.is_clean() && left.is_empty(), "after {milliseconds} ms: {left:?}");
    }
}

#[test]
fn timeout_has_its_own_code() {
    let Some(place) = Place::new(IDLE) else { return };
    let (code, errors) = place.start(&["--timeout", "500ms", "--stop-timeout", "100ms"]).finish();
    assert_eq!(code, Some(124), "{errors}");
    assert!(errors.contains("--timeout expired: pressed the power button"), "{errors}");
}

/// Opening a FIFO waits for its reader.
#[test]
fn what_keeps_a_vm_from_being_built_does_not_keep_a_timeout_from_ending_it() {
    let Some(place) = Place::new(IDLE) else { return };
    let fifo = place.path("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let console = ["--console", fifo.to_str().unwrap()];
    for stop_timeout in ["0s", "100ms", "1h"] {
        let mut boot = place.boot(&["--timeout", "100ms", "--stop-timeout", stop_timeout]);
        let start = Instant::now();
        let (code, errors) = Vm(boot.args(console).spawn().unwrap()).finish();
        assert_eq!(code, Some(124), "{errors}");
        assert_eq!(errors, "mvm: stopped: --timeout expired\n");
        assert!(start.elapsed() < FORCED_END, "{:?}", start.elapsed());
        assert!(place.is_clean());
    }
}

#[test]
fn the_command_timeout_presses_the_button_once() {
    let Some(place) = Place::new(IDLE) else { return };
    let boot = place.boot(&["--stop-timeout", "2s"]);
    let mut command = Command::new("timeout");
    command.args(["--kill-after=30", "1"]).arg(boot.get_program()).args(boot.get_args());
    command.envs(boot.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = text(&output);
    assert_eq!(said.matches("pressed the power button").count(), 1, "{said}");
    assert!(
        said.contains("the guest did not power off in 2 s") && !said.contains("second request"),
        "{said}"
    );
}

#[test]
fn signals_that_were_ignored_at_the_start_stay_ignored() {
    let Some(place) = Place::new(IDLE) else { return };
    let boot = place.boot(&["--stop-timeout", "100ms"]);
    // As nohup(1), and as a shell without job control does with what it runs in the background.
    let mut command = Command::new("sh");
    command
        .args(["-c", "trap '' HUP INT QUIT; exec \"$@\"", "sh"])
        .arg(boot.get_program())
        .args(boot.get_args());
    command.envs(boot.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut vm = Vm(command.spawn().unwrap());
    vm.0.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    for signal in [Signal::HUP, Signal::INT, Signal::QUIT] {
        vm.signal(signal);
    }
    vm.signal(Signal::TERM);
    let (code, errors) = vm.finish();
    assert_eq!(code, Some(143), "{errors}");
    assert!(errors.contains("SIGTERM: pressed") && !errors.contains("SIGHUP"), "{errors}");
}

#[test]
fn a_paused_vm_is_resumed_before_its_button_is_pressed() {
    let Some(place) = Place::new(IDLE) else { return };
    let vm = place.start(&["--stop-timeout", "1h"]);
    let run = |arguments: &[&str]| text(&place.mvm().args(arguments).output().unwrap());
    assert_eq!(run(&["pause", "vm"]).trim(), "vm");
    assert!(run(&["ps"]).contains("(Paused)"));
    vm.signal(Signal::TERM);
    let start = Instant::now();
    while run(&["ps"]).contains("(Paused)") {
        assert!(start.elapsed() < Duration::from_secs(20), "{}", run(&["ps"]));
    }
}

#[test]
fn a_paused_vm_is_resumed_before_its_button_is_pressed_by_a_request() {
    let Some(place) = Place::new(IDLE) else { return };
    let _vm = place.start(&["--stop-timeout", "1h"]);
    let mut client = place.client("vm");
    client.send("PATCH", "/vm", &VmUpdate { state: WantedState::Paused }).unwrap();
    assert_eq!(client.get::<InstanceInfo>("/").unwrap().state, State::Paused);
    client.send("PUT", "/actions", &Action { action_type: ActionType::SendCtrlAltDel }).unwrap();
    // The answer comes after the press.
    assert_eq!(client.get::<InstanceInfo>("/").unwrap().state, State::Running);
}

#[test]
fn a_vm_ends_in_time_though_its_output_is_not_read() {
    let Some(place) = Place::new(TALKS) else { return };
    // The pipes stay open and full.
    let mut vm = place.start(&["--stop-timeout", "0s", "--log-level", "trace"]);
    vm.signal(Signal::TERM);
    let start = Instant::now();
    assert_eq!(vm.wait().code(), Some(143));
    assert!(start.elapsed() < FORCED_END, "{:?}", start.elapsed());
    assert!(place.is_clean());
}

/// Waits until the guest has filled `pipe`, as far as writes of any length fill it.
fn wait_until_full(pipe: &ChildStdout) {
    let size = fcntl_getpipe_size(pipe).unwrap() as u64;
    let start = Instant::now();
    while ioctl_fionread(pipe).unwrap() < size / 2 {
        assert!(start.elapsed() < WATCHDOG, "the guest does not write");
        std::thread::yield_now();
    }
}

#[test]
fn a_vm_that_is_ended_by_force_does_not_wait_for_a_slow_reader() {
    let Some(place) = Place::new(TALKS) else { return };
    let mut vm = place.start(&["--stop-timeout", "0s"]);
    let mut output = vm.0.stdout.take().unwrap();
    wait_until_full(&output);
    // So slow that all that waits would take a minute, but never standing still: its time is what is tested.
    let reader = std::thread::spawn(move || {
        while let Ok(1..) = output.read(&mut [0; 4096]) {
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    vm.signal(Signal::TERM);
    vm.finish_forced(&place);
    reader.join().unwrap();
}

#[test]
fn a_file_size_limit_is_an_error_and_not_an_end() {
    let Some(place) = Place::new(TALKS_AND_ENDS) else { return };
    let console = place.path("console");
    for console in ["stdio", console.to_str().unwrap()] {
        let mut command = place.boot(&["--console", console]);
        command.stdout(Stdio::null());
        // SAFETY: the call sets a limit of the new process and nothing else.
        unsafe {
            command.pre_exec(|| {
                let limit = Rlimit { current: Some(4096), maximum: Some(4096) };
                Ok(setrlimit(Resource::Fsize, limit)?)
            });
        }
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(0), "--console {console}: {} {}", output.status, text(&output));
    }
}

/// Memory that is shared with other processes is a file, whose size a limit bounds as well.
#[test]
fn a_file_size_limit_below_the_shared_memory_is_the_hosts() {
    use std::os::unix::fs::PermissionsExt;
    let Some(place) = Place::new(IDLE) else { return };
    let script = place.path("virtiofsd");
    std::fs::write(&script, "#!/bin/sh\nexec sleep 60\n").unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = place.boot(&["--share", "/tmp:/work"]);
    command.env("MVM_VIRTIOFSD", &script);
    // SAFETY: the call sets a limit of the new process and nothing else.
    unsafe {
        command.pre_exec(|| {
            let limit = Rlimit { current: Some(1 << 20), maximum: Some(1 << 20) };
            Ok(setrlimit(Resource::Fsize, limit)?)
        });
    }
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{} {}", output.status, text(&output));
    let expected =
        "mvm: cannot reserve 32M of memory for the guest (give a smaller --memory): File too large";
    assert!(text(&output).contains(expected), "{}", text(&output));
    assert!(place.is_clean());
}

/// Whichever descriptor is the one too many, from the first to the last that building a VM takes.
#[test]
fn a_limit_of_descriptors_is_the_hosts_and_leaves_nothing_behind() {
    let Some(place) = Place::new(ENDS) else { return };
    let socket = place.path("v");
    let disk = place.path("disk");
    std::fs::write(&disk, [0; 4096]).unwrap();
    let mut ended = 0;
    for limit in 10.. {
        let mut command = place.boot(&["--balloon", "--vsock", socket.to_str().unwrap()]);
        command.arg("--disk").arg(&disk);
        // SAFETY: the call sets a limit of the new process and nothing else.
        unsafe {
            command.pre_exec(move || {
                let limit = Rlimit { current: Some(limit), maximum: Some(limit) };
                Ok(setrlimit(Resource::Nofile, limit)?)
            });
        }
        let output = command.output().unwrap();
        assert!(place.is_clean() && !socket.exists(), "{limit} files: {}", text(&output));
        match output.status.code() {
            Some(0) => ended += 1,
            code => assert_eq!((code, ended), (Some(3), 0), "{limit} files: {}", text(&output)),
        }
        if ended == 3 {
            return;
        }
        assert!(limit < 1000, "{}", text(&output));
    }
}
