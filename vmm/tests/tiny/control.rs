//! A running guest in the hands of who has its control socket.

use instance::Client;
use instance::MetricsReport;
use instance::api::{Action, ActionType, InstanceInfo, State, VmUpdate, WantedState};
use vmm::ExitReason;

use super::machine::{Machine, Running};

/// Where guests count.
const COUNTER: u64 = 0x40_0000;
/// A port that no device has.
const NOWHERE: u16 = 0x80;

fn client(running: &Running) -> Client {
    Client::connect(&running.control_socket()).unwrap()
}

fn update(client: &mut Client, state: WantedState) {
    client.send("PATCH", "/vm", &VmUpdate { state }).unwrap();
}

fn act(client: &mut Client, action_type: ActionType) {
    client.send("PUT", "/actions", &Action { action_type }).unwrap();
}

guest!(
    counts_in_memory,
    "
        xor ebx, ebx
        say 'r'
    2:
        inc rbx
        mov [{COUNTER}], rbx
        jmp 2b
    ",
    COUNTER = COUNTER
);

#[test]
fn a_guest_stands_still_until_it_is_resumed_and_ends_when_it_is_killed() {
    let Some(machine) = Machine::new(counts_in_memory()) else { return };
    let running = machine.cpus(2).controlled().run_until_ready();
    let mut client = client(&running);
    for _ in 0..3 {
        update(&mut client, WantedState::Paused);
        assert_eq!(client.get::<InstanceInfo>("/").unwrap().state, State::Paused);
        let counted = running.read(COUNTER);
        // Each takes its time, in which the guest would count on.
        for _ in 0..100 {
            client.get::<InstanceInfo>("/").unwrap();
        }
        assert_eq!(running.read(COUNTER), counted);
        update(&mut client, WantedState::Resumed);
        running.read_changed(COUNTER);
        assert_eq!(client.get::<InstanceInfo>("/").unwrap().state, State::Running);
    }
    act(&mut client, ActionType::Kill);
    assert_eq!(running.wait().0, ExitReason::Signal(libc::SIGKILL));
}

#[test]
fn a_paused_guest_is_killed() {
    let Some(machine) = Machine::new(counts_in_memory()) else { return };
    let running = machine.controlled().run_until_ready();
    let mut client = client(&running);
    update(&mut client, WantedState::Paused);
    act(&mut client, ActionType::Kill);
    assert_eq!(running.wait().0, ExitReason::Signal(libc::SIGKILL));
}

guest!(
    waits_for_its_button,
    "
        take_interrupt {EVENT_DEVICE}, 3f
        sti
        say 'r'
    2:
        hlt
        jmp 2b
    3:
        end_of_interrupt
        say 'p'
        power_off
    ",
    EVENT_DEVICE = vmm::layout::EVENT_DEVICE_GSI
);

#[test]
fn the_power_button_can_be_pressed() {
    let Some(machine) = Machine::new(waits_for_its_button()) else { return };
    let running = machine.controlled().run_until_ready();
    act(&mut client(&running), ActionType::SendCtrlAltDel);
    assert_eq!(running.wait(), (ExitReason::PowerOff, b"p".to_vec()));
}

guest!(
    exits_often,
    "
        mov ecx, 100
    2:
        out {NOWHERE}, al
        in al, {NOWHERE}
        in al, {NOWHERE}
        loop 2b
        say 'r'
    3:
        cli
        hlt
        jmp 3b
    ",
    NOWHERE = NOWHERE
);

#[test]
fn exits_are_counted_by_what_they_are_for() {
    let Some(machine) = Machine::new(exits_often()) else { return };
    let running = machine.cpus(2).controlled().run_until_ready();
    let mut client = client(&running);
    let before: MetricsReport = client.get("/metrics.json").unwrap();
    let boot_vcpu = &before.counters["vcpu"]["0"];
    // Whatever says that the guest is ready comes in addition.
    assert!((101..120).contains(&boot_vcpu["port_write_exits"]), "{boot_vcpu:?}");
    assert!((200..220).contains(&boot_vcpu["port_read_exits"]), "{boot_vcpu:?}");
    assert_eq!(before.counters["vcpu"]["1"]["port_write_exits"], 0);
    // A pause interrupts the guest, and that is counted too.
    update(&mut client, WantedState::Paused);
    let after: MetricsReport = client.get("/metrics.json").unwrap();
    let count = |snapshot: &MetricsReport| snapshot.counters["vcpu"]["0"]["interrupted_exits"];
    assert!(count(&after) > count(&before), "{after:?}");
    act(&mut client, ActionType::Kill);
    assert_eq!(running.wait().0, ExitReason::Signal(libc::SIGKILL));
}
