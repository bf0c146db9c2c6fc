//! A storm of clients at a VM's sockets, which come and go with and without half of what they want to say.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use instance::api::{InstanceInfo, State};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, prlimit};

use crate::vm::{IDLE, Place, TALKS, Vm, WATCHDOG};

/// What a client sends before it goes.
const SAYINGS: &[&[u8]] = &[
    b"",
    b"G",
    b"GET / HT",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET /openapi.json HTTP/1.1\r\n\r\nGET /openapi.json HTTP/1.1\r\n\r\nGET /vm/config HTTP/1.1\r\n",
    b"PATCH /vm HTTP/1.1\r\nContent-Length: 18\r\n\r\n{\"state\":",
    b"PUT /actions HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 99999999\r\n\r\n",
    b"\0\xff\x1b]0;x\x07",
];
/// Threads for each socket.
const THREADS: usize = 4;
/// How many clients there are in all, at least.
const CLIENTS: usize = 4000;
/// The most clients of the console at once. Those whose input the guest does not read keep their places until others
/// come.
const CONSOLE_CLIENTS: usize = 16;

/// Connects to the socket at `path` again and again, each time with something else to say.
fn storm(path: &Path, seed: usize, clients: &AtomicUsize, is_over: &AtomicBool) {
    let mut kept = Vec::new();
    for round in seed.. {
        if is_over.load(Ordering::Relaxed) {
            return;
        }
        // Where there is no room in the queue, it waits.
        let mut client = UnixStream::connect(path).unwrap();
        clients.fetch_add(1, Ordering::Relaxed);
        // The VM may have closed the connection to make room for another one.
        let _ = client.write_all(SAYINGS[round % SAYINGS.len()]);
        match round % 5 {
            0 => drop(client.shutdown(std::net::Shutdown::Write)),
            1 => drop(client.shutdown(std::net::Shutdown::Read)),
            2 => {
                client.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
                let _ = client.read(&mut [0; 64]);
            }
            // Some stay for a while.
            _ => kept.push(client),
        }
        if kept.len() > 20 {
            kept.clear();
        }
    }
}

/// How the VM is confined whose process is looked into, which only root may do with one that is.
fn jail() -> &'static str {
    if rustix::process::geteuid().is_root() { "best-effort" } else { "off" }
}

/// The open descriptors of the VM's process, and the kibibytes that it has in memory.
fn resources(vm: &Vm) -> (usize, u64) {
    let process = PathBuf::from(format!("/proc/{}", vm.process()));
    let status = std::fs::read_to_string(process.join("status")).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let resident = resident.trim().trim_end_matches(" kB").parse().unwrap();
    (std::fs::read_dir(process.join("fd")).unwrap().count(), resident)
}

/// Without a descriptor for a client, the client waits, and nothing else does or is busy.
#[test]
fn sockets_without_descriptors_for_their_clients_wait_until_there_are_some() {
    let Some(place) = Place::new(IDLE) else { return };
    // One that is confined is another user, whose limits root too can set with CAP_SYS_RESOURCE alone.
    let mut vm = place.start(&["--stop-timeout", "0s", "--jail", "off"]);
    let control = place.control_socket("vm");
    let process = vm.process();
    let few = Rlimit { current: Some(3), ..getrlimit(Resource::Nofile) };
    let limit = prlimit(Some(process), Resource::Nofile, few).unwrap();
    let mut console = UnixStream::connect(control.with_file_name("console.sock")).unwrap();
    vm.wait_for("the console's socket cannot accept a client");
    let waiting = UnixStream::connect(&control).unwrap();
    vm.wait_for("the control socket cannot accept a client");
    let before = cpu_time(&vm);
    // The time in which nothing is to happen is what is tested.
    std::thread::sleep(Duration::from_secs(1));
    let used = cpu_time(&vm) - before;
    assert!(used < Duration::from_millis(300), "{used:?} of a second");
    prlimit(Some(process), Resource::Nofile, limit).unwrap();
    drop(waiting);
    place.client("vm").get::<InstanceInfo>("/").unwrap();
    console.set_read_timeout(Some(WATCHDOG)).unwrap();
    console.read_exact(&mut [0]).unwrap();
    vm.signal(Signal::TERM);
    vm.finish_forced(&place);
}

/// The CPU time that the VM's process has used.
fn cpu_time(vm: &Vm) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{}/task", vm.process())).unwrap();
    let of_thread = |thread: std::fs::DirEntry| -> u64 {
        let times = std::fs::read_to_string(thread.path().join("schedstat")).unwrap();
        times.split(' ').next().unwrap().parse().unwrap()
    };
    Duration::from_nanos(threads.map(|thread| of_thread(thread.unwrap())).sum())
}

#[test]
fn a_storm_of_clients_leaves_nothing_and_keeps_no_other_from_its_answer() {
    let Some(place) = Place::new(TALKS) else { return };
    let mut vm = place.start(&["--stop-timeout", "0s", "--jail", jail()]);
    // The guest's output has a reader.
    let mut output = vm.0.stdout.take().unwrap();
    let reader = std::thread::spawn(move || while let Ok(1..) = output.read(&mut [0; 1 << 16]) {});
    let control = place.control_socket("vm");
    let sockets = [control.clone(), control.with_file_name("console.sock")];
    place.client("vm").get::<InstanceInfo>("/").unwrap();
    let before = resources(&vm);
    let (clients, is_over, mut answers) = (AtomicUsize::new(0), AtomicBool::new(false), 0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for (seed, socket) in (0..THREADS).flat_map(|seed| sockets.iter().map(move |socket| (seed, socket))) {
            let (clients, is_over) = (&clients, &is_over);
            scope.spawn(move || storm(socket, seed, clients, is_over));
        }
        while clients.load(Ordering::Relaxed) < CLIENTS && start.elapsed() < WATCHDOG / 2 {
            let info =
                instance::Client::connect(&control).and_then(|mut client| client.get::<InstanceInfo>("/"));
            answers += usize::from(info.is_ok_and(|info| info.state == State::Running));
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let clients = clients.into_inner();
    println!("{clients} clients and {answers} answers in {:?}", start.elapsed());
    assert!(clients >= 1000 && answers > 10, "{clients} clients, {answers} answers");
    // Those that have gone are noticed one after the other.
    while resources(&vm).0 > before.0 + CONSOLE_CLIENTS {
        assert!(start.elapsed() < WATCHDOG, "{:?}, before: {before:?}", resources(&vm));
        place.client("vm").get::<InstanceInfo>("/").unwrap();
    }
    let mut console = UnixStream::connect(&sockets[1]).unwrap();
    console.set_read_timeout(Some(WATCHDOG)).unwrap();
    console.read_exact(&mut [0; 100]).unwrap();
    let after = resources(&vm);
    assert!(after.1 < before.1 + (8 << 10), "KiB: {} before, {} after", before.1, after.1);
    vm.signal(Signal::TERM);
    vm.finish_forced(&place);
    reader.join().unwrap();
}
