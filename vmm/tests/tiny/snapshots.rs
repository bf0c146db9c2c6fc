//! VMs that are saved, and go on in another one.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;

use devices::legacy::EVENT_GENERATION;
use devices::virtio::pmem::PmemMode;
use instance::Client;
use instance::api::{SnapshotCreate, VmUpdate, WantedState};
use vmm::{ExitReason, GdbConfig, SavedVm, Snapshot};

use super::machine::{Machine, Running};

/// What a guest keeps in registers, and in the middle of its memory.
const PATTERN: u64 = 0x0123_4567_89ab_cdef;
const FAR: u64 = 96 << 20;

/// Ends a guest.
fn stop(running: Running) {
    running.force(libc::SIGTERM);
    assert_eq!(running.wait().0, ExitReason::Signal(libc::SIGTERM));
}

/// The state of a guest, which has gone through a file.
fn save(running: &Running) -> Snapshot {
    let memory = tempfile::tempfile().unwrap();
    let state = running.saver.save(&memory).unwrap();
    let state = SavedVm::decode(&state.encode().unwrap()).unwrap();
    Snapshot::new(state, memory)
}

fn again(snapshot: &Snapshot) -> Snapshot {
    let memory = snapshot.memory.try_clone().unwrap();
    Snapshot::new(snapshot.state.clone(), memory)
}

guest!(
    counts_in_output,
    "
        // OSFXSR: the guest uses SSE.
        mov rax, cr4
        or eax, 1 << 9
        mov cr4, rax
        mov rcx, {FAR}
        mov rax, {PATTERN}
        mov r12, rax
        mov [rcx], rax
        mov [rcx + 8], rax
        // What an interpreter knows of SSE, too.
        movdqu xmm7, [rcx]
        xor ebx, ebx
        say 'r'
    2:
        mov eax, ebx
        put32
        inc ebx
        mov rcx, {FAR}
        cmp [rcx], r12
        jne 3f
        movdqu [rcx + 16], xmm7
        cmp [rcx + 24], r12
        je 2b
    3:
        power_off
    ",
    FAR = FAR,
    PATTERN = PATTERN
);

/// The next `count` numbers of a guest, each of which follows the one before.
fn numbers(from: &mut impl Read, count: u32, mut next: Option<u32>) -> u32 {
    for _ in 0..count {
        let mut bytes = [0; 4];
        from.read_exact(&mut bytes).unwrap();
        let number = u32::from_le_bytes(bytes);
        assert_eq!(next.unwrap_or(number), number);
        next = Some(number + 1);
    }
    next.unwrap()
}

#[test]
fn a_guest_goes_on_from_where_it_was_saved_as_often_as_wanted() {
    let Some(machine) = Machine::new(counts_in_output()) else { return };
    let running = machine.run_until_ready();
    rustix::io::ioctl_fionbio(running.console(), false).unwrap();
    let mut output = BufReader::new(running.console().try_clone().unwrap());
    let next = numbers(&mut output, 1000, None);
    let snapshot = save(&running);
    // The one that was saved has lost nothing.
    let next = numbers(&mut output, 5000, Some(next));
    drop(output);
    stop(running);
    for _ in 0..2 {
        let restored = Machine::new(counts_in_output()).unwrap().continuing(again(&snapshot));
        let restored = restored.run_with_pipe(false);
        rustix::io::ioctl_fionbio(restored.console(), false).unwrap();
        let mut output = BufReader::new(restored.console().try_clone().unwrap());
        // It may have been saved within a number, whose first bytes are elsewhere.
        let first = align(&mut output);
        assert!(first < next, "{first} {next}");
        numbers(&mut output, 5000, Some(first));
        drop(output);
        stop(restored);
    }
}

/// Reads the rest of a number, and returns the one after the next.
fn align(from: &mut impl Read) -> u32 {
    let mut bytes = [0; 11];
    from.read_exact(&mut bytes).unwrap();
    for start in 0..4 {
        let at = |place: usize| u32::from_le_bytes(bytes[place..place + 4].try_into().unwrap());
        if start + 8 <= bytes.len() && at(start) + 1 == at(start + 4) {
            let mut rest = vec![0; (4 - (bytes.len() - start) % 4) % 4];
            from.read_exact(&mut rest).unwrap();
            return at(start + 4) + 1 + u32::from(!rest.is_empty());
        }
    }
    panic!("{bytes:02x?}")
}

/// Counts in memory, each vCPU at a place of its own. The others are started by the first.
const COUNTERS: u64 = 0x1_1000;

guest!(
    all_count,
    "
        map_gib 3, 0x12000
        lea rsi, [rip + 3f]
        mov edi, 0x10000
        mov ecx, 64
        rep movsb
        mov ebx, {LOCAL_APIC}
        store 0xf0, 0x1ff
        store 0x300, 0x000c4500
        store 0x300, 0x000c4610
        say 'r'
    2:
        inc dword ptr [{COUNTERS}]
        jmp 2b

        .code16
    3:
        mov ax, cs
        mov ds, ax
        mov eax, 1
        cpuid
        shr ebx, 24
    4:
        inc dword ptr [ebx * 8 + 0x1000]
        jmp 4b
    ",
    COUNTERS = COUNTERS
);

#[test]
fn all_vcpus_go_on_where_they_were() {
    const CPUS: u64 = 4;
    let Some(machine) = Machine::new(all_count()) else { return };
    let running = machine.cpus(4).run_until_ready();
    for cpu in 0..CPUS {
        running.read_changed(COUNTERS + cpu * 8);
    }
    let snapshot = save(&running);
    for cpu in 0..CPUS {
        running.read_changed(COUNTERS + cpu * 8);
    }
    stop(running);
    let saved = |cpu| {
        let mut bytes = [0; 8];
        std::os::unix::fs::FileExt::read_exact_at(&snapshot.memory, &mut bytes, COUNTERS + cpu * 8).unwrap();
        u64::from_le_bytes(bytes)
    };
    let restored = Machine::new(all_count()).unwrap().cpus(4).continuing(again(&snapshot));
    let restored = restored.run_with_pipe(false);
    for cpu in 0..CPUS {
        assert!(saved(cpu) > 0 && restored.read_changed(COUNTERS + cpu * 8) > saved(cpu), "{cpu}");
    }
    stop(restored);
}

/// How often a guest is copied: each is a copy of the one before, which has ended.
const COPIES: usize = 1000;

#[test]
fn a_busy_guest_is_copied_a_thousand_times() {
    const CPUS: u64 = 2;
    // To look through more is most of the time that a copy takes.
    let machine = || Some(Machine::new(all_count())?.memory(16).cpus(2));
    let Some(first) = machine() else { return };
    let mut running = first.run_until_ready();
    let mut last = [0; 2];
    for number in 0..COPIES {
        let snapshot = save(&running);
        let copy = machine().unwrap().continuing(again(&snapshot)).run_with_pipe(false);
        stop(std::mem::replace(&mut running, copy));
        for (cpu, last) in (0..CPUS).zip(&mut last) {
            let now = running.read_changed(COUNTERS + cpu * 8);
            assert!(now > *last, "{number}: {cpu}: {now} after {last}");
            *last = now;
        }
    }
    stop(running);
}

#[test]
fn the_control_socket_saves_in_files_that_come_with_the_request() {
    let Some(machine) = Machine::new(counts_in_output()) else { return };
    let running = machine.controlled().run_until_ready();
    let mut client = Client::connect(&running.control_socket()).unwrap();
    let (mut state, memory) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let create = ("PUT", "/snapshot/create");
    let files: [File; 1] = [state.try_clone().unwrap()];
    let one = client.send_with_files(create, &SnapshotCreate::default(), &[files[0].as_fd()]);
    assert!(one.unwrap_err().to_string().contains("two open, empty files"));
    drop(files);
    let path = SnapshotCreate { snapshot_path: Some("/tmp/x".into()), ..SnapshotCreate::default() };
    let refused = client.send_with_files(create, &path, &[state.as_fd(), memory.as_fd()]);
    assert!(refused.unwrap_err().to_string().contains("opens no path"));
    // One that is paused stays so.
    for wanted in [WantedState::Resumed, WantedState::Paused] {
        client.send("PATCH", "/vm", &VmUpdate { state: wanted }).unwrap();
        state.set_len(0).unwrap();
        state.rewind().unwrap();
        memory.set_len(0).unwrap();
        client.send_with_files(create, &SnapshotCreate::default(), &[state.as_fd(), memory.as_fd()]).unwrap();
        assert_eq!(running.gate.is_paused(), wanted == WantedState::Paused);
        let mut bytes = Vec::new();
        state.rewind().unwrap();
        state.read_to_end(&mut bytes).unwrap();
        let state = SavedVm::decode(&bytes).unwrap();
        assert_eq!(state.memory(), 128 << 20);
        assert_eq!(memory.metadata().unwrap().len(), 128 << 20);
    }
    // It is not resumed by others while who has saved it has not ended it.
    let (ours, theirs) = UnixStream::pair().unwrap();
    let stays = SnapshotCreate { stays_paused: true, ..SnapshotCreate::default() };
    client.send_with_files(create, &stays, &[state.as_fd(), memory.as_fd(), theirs.as_fd()]).unwrap();
    drop(theirs);
    let resumed = ("PATCH", "/vm", &VmUpdate { state: WantedState::Resumed });
    let refused = client.send(resumed.0, resumed.1, resumed.2).unwrap_err().to_string();
    assert!(refused.contains("it is being saved") && running.gate.is_paused(), "{refused}");
    drop(ours);
    client.send(resumed.0, resumed.1, resumed.2).unwrap();
    assert!(!running.gate.is_paused());
    // Nor is one saved so that runs.
    let (_ours, theirs) = UnixStream::pair().unwrap();
    let files = [state.as_fd(), memory.as_fd(), theirs.as_fd()];
    let refused = client.send_with_files(create, &stays, &files).unwrap_err().to_string();
    assert!(refused.contains("it does not stand still"), "{refused}");
    // It has closed the files when it answers: those who have saved it rely on that.
    for file in [state, memory] {
        let reader = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        drop(file);
        // SAFETY: the call takes numbers.
        let is_leased = unsafe { libc::fcntl(reader.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) } == 0;
        let why = std::io::Error::last_os_error();
        assert!(is_leased || why.kind() != std::io::ErrorKind::WouldBlock, "it is open for writing");
    }
    stop(running);
}

guest!(
    polls_events,
    "
        say 'r'
    2:
        mov dx, {POWER} + 3
        in al, dx
        movzx eax, al
        test eax, eax
        jz 2b
        put32
        jmp 2b
    "
);

#[test]
fn each_that_goes_on_is_another_generation_and_hears_of_it() {
    let Some(machine) = Machine::new(polls_events()) else { return };
    let running = machine.run_until_ready();
    let id = |running: &Running| {
        let at = vmm::layout::GENERATION_ID.0;
        (running.read(at), running.read(at + 8))
    };
    let mut ids = vec![id(&running)];
    let snapshot = save(&running);
    assert_eq!(id(&running), ids[0]);
    stop(running);
    for _ in 0..2 {
        let restored =
            Machine::new(polls_events()).unwrap().continuing(again(&snapshot)).run_with_pipe(false);
        rustix::io::ioctl_fionbio(restored.console(), false).unwrap();
        let mut output = restored.console();
        assert_eq!(numbers(&mut output, 1, None), u32::from(EVENT_GENERATION) + 1);
        ids.push(id(&restored));
        stop(restored);
    }
    ids.sort_unstable();
    ids.dedup();
    assert!(ids.len() == 3 && ids[0] != (0, 0), "{ids:x?}");
}

#[test]
fn the_vm_stands_still_until_its_disks_are_copied() {
    let Some(machine) = Machine::new(counts_in_output()) else { return };
    let running = machine.controlled().run_until_ready();
    let (state, memory) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let socket = running.control_socket();
    let files = [state.as_fd(), memory.as_fd(), theirs.as_fd()];
    let save = || {
        let mut client = Client::connect(&socket).unwrap();
        client.send_with_files(("PUT", "/snapshot/create"), &SnapshotCreate::default(), &files)
    };
    std::thread::scope(|scope| {
        let saved = scope.spawn(save);
        ours.read_exact(&mut [0]).unwrap();
        // What is left to do would be done if it did not wait.
        while memory.metadata().unwrap().len() == 0 {
            std::thread::yield_now();
        }
        assert!(running.gate.is_paused() && !saved.is_finished());
        assert_eq!(state.metadata().unwrap().len(), 0);
        drop(ours);
        saved.join().unwrap().unwrap();
    });
    assert!(!running.gate.is_paused());
    assert!(state.metadata().unwrap().len() > 0);
    // One whose other end has gone before holds nothing.
    let gone = save().unwrap_err().to_string();
    assert!(gone.contains("disks to be copied"), "{gone}");
    assert!(!running.gate.is_paused());
    stop(running);
}

#[test]
fn what_can_t_be_saved_is_refused_and_runs_on() {
    let Some(machine) = Machine::new(counts_in_output()) else { return };
    let mut machine = machine;
    machine.config.gdb = Some(GdbConfig::Unix(machine.path("gdb")));
    let running = machine.run_with_pipe(false);
    let error = running.saver.save(&tempfile::tempfile().unwrap()).unwrap_err().to_string();
    assert_eq!(error, "a VM with a debugger (--gdb) cannot be saved");
    stop(running);
}

#[test]
fn a_state_of_another_vm_is_refused() {
    let Some(machine) = Machine::new(counts_in_output()) else { return };
    let running = machine.run_until_ready();
    let snapshot = save(&running);
    stop(running);
    let refused = |machine: Machine, snapshot: Snapshot| machine.continuing(snapshot).refusal();
    let new = || Machine::new(counts_in_output()).unwrap();
    let error = refused(new().cpus(2), again(&snapshot));
    assert!(error.contains("1 vCPUs") && error.contains("2 vCPUs"), "{error}");
    let error = refused(new().disk("disk", &[0; 4096]), again(&snapshot));
    assert!(error.contains("devices"), "{error}");
    let short = Snapshot { memory: tempfile::tempfile().unwrap(), ..again(&snapshot) };
    let error = refused(new(), short);
    assert!(error.contains("cut off"), "{error}");
}

/// A state that the first mvm with this format has written, of a VM with most kinds of devices. Later ones go on from
/// it, or have another version. With `MVM_WRITE_FIXTURES=1` it is written anew, for a format that has changed.
const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tiny/state-1");

/// The kinds of devices in it.
const KINDS: [&str; 15] = [
    "memory",
    "machine",
    "i8042",
    "cmos",
    "pvpanic",
    "reset-control",
    "exit-code",
    "boot-marker",
    "serial",
    "power",
    "virtio-2",
    "virtio-4",
    "virtio-5",
    "virtio-19",
    "virtio-27",
];

/// A VM with them.
fn with_devices() -> Option<Machine> {
    let machine = Machine::new(counts_in_output())?;
    let mut machine = machine.disk("disk", &[7; 8192]).pmem("pmem", PmemMode::ReadOnly, &[7; 2 << 20]);
    machine.config.balloon = true;
    machine.config.vsock = Some(format!("{}", machine.path("vsock").display()).parse().unwrap());
    Some(machine)
}

/// The sections of a state, each with its name and as it is in the file.
fn sections(state: &[u8]) -> Vec<(String, Vec<u8>)> {
    let number = |at: usize| u32::from_le_bytes(state[at..at + 4].try_into().unwrap()) as usize;
    let mut at = 16;
    let sections = (0..number(12)).map(|_| {
        let (start, name) = (at, at + 4..at + 4 + number(at));
        at = name.end + 4 + number(name.end) + 4;
        (String::from_utf8(state[name].to_vec()).unwrap(), state[start..at].to_vec())
    });
    let sections = sections.collect();
    assert_eq!(at, state.len());
    sections
}

#[test]
fn devices_go_on_from_a_state_of_an_older_mvm() {
    let Some(machine) = with_devices() else { return };
    let running = machine.run_until_ready();
    let snapshot = save(&running);
    stop(running);
    let own = snapshot.state.encode().unwrap();
    if std::env::var_os("MVM_WRITE_FIXTURES").is_some() {
        std::fs::write(FIXTURE, &own).unwrap();
    }
    let old = std::fs::read(FIXTURE).unwrap();
    assert!(SavedVm::decode(&old).unwrap().encode().unwrap() == old, "it is written as it was");
    // KVM's part is the processor's that it was made on.
    let mut bytes = own[..12].to_vec();
    let (old, own) = (sections(&old), sections(&own));
    bytes.extend(u32::try_from(old.len()).unwrap().to_le_bytes());
    for (name, section) in &old {
        let machine = own.iter().find(|(own, _)| name == "machine" && own == name);
        bytes.extend(machine.map_or(section, |(_, section)| section));
    }
    for kind in KINDS {
        assert!(old.iter().any(|(name, _)| name == kind), "{kind}: {:?}", old.iter().map(|old| &old.0));
    }
    let state = SavedVm::decode(&bytes).unwrap();
    let snapshot = Snapshot { state, ..snapshot };
    let restored = with_devices().unwrap().continuing(snapshot).run_with_pipe(false);
    rustix::io::ioctl_fionbio(restored.console(), false).unwrap();
    let mut output = BufReader::new(restored.console().try_clone().unwrap());
    let next = align(&mut output);
    numbers(&mut output, 100, Some(next));
    drop(output);
    stop(restored);
}
