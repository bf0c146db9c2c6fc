//! The console, with a user who types and a reader who is not always there.

#![no_main]

use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use devices::virtio::VirtioDevice;
use devices::virtio::console::{Console, ConsoleSink, WindowSize};
use fuzz::{HostSide, MAX_STEPS, Rig, Script, Step};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

#[derive(Arbitrary, Debug)]
enum Action {
    Driver(Step),
    Type(Vec<u8>),
    Read(u16),
    Resize { columns: u16, rows: u16 },
}

#[derive(Clone)]
struct Sink {
    room: Arc<Mutex<usize>>,
    event: Arc<EventFd>,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut room = self.room.lock().expect("no panic");
        // A driver in distress is not asked to wait.
        assert!(bytes.len() <= (*room).max(1), "the device keeps to the room there is");
        *room = room.saturating_sub(bytes.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The reader stalls: what it has read makes no room.
impl HostSide for Sink {
    fn stall(&mut self) {
        *self.room.lock().expect("no panic") = 0;
    }

    fn release(&mut self) {
        self.make_room(1 << 20);
    }
}

impl Sink {
    fn make_room(&self, length: usize) {
        *self.room.lock().expect("no panic") += length;
        self.event.write(1).expect("the eventfd takes it");
    }
}

/// The queue whose chains the reader has to take.
const TRANSMIT: usize = 1;
/// The timer among the descriptors that wake the device.
const LISTENER_TIMER: usize = 1;

impl ConsoleSink for Sink {
    fn room(&mut self) -> usize {
        *self.room.lock().expect("no panic")
    }

    fn room_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    fn acknowledge(&mut self) {
        let _ = self.event.read();
    }
}

fuzz_target!(|script: Script<Action>| {
    let event = Arc::new(EventFd::new(EFD_NONBLOCK).expect("an eventfd"));
    let sink = Sink { room: Arc::new(Mutex::new(1 << 16)), event };
    let of_device = sink.clone();
    let make = move || Console::new(Box::new(of_device.clone()), WindowSize::default()).expect("a device");
    let rig = Rig::new(make, script.declined, script.halvings);
    let mut rig = rig.with_host(sink.clone(), Duration::ZERO, &[TRANSMIT]);
    for action in script.steps.iter().take(MAX_STEPS) {
        match action {
            Action::Driver(step) => rig.step(step),
            Action::Type(bytes) => {
                let room = rig.device().input_room();
                assert_eq!(rig.device().input(bytes), room.min(bytes.len()));
                // The time before it asks whether anybody listens.
                rig.device().woken(LISTENER_TIMER);
            }
            Action::Read(_) if rig.is_stalled() => {}
            Action::Read(length) => sink.make_room((*length).into()),
            Action::Resize { columns, rows } => {
                rig.device().resize(WindowSize { columns: *columns, rows: *rows });
            }
        }
        rig.pump();
    }
    rig.end(&script);
});
