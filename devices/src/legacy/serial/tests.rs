use std::sync::atomic::AtomicUsize;

use proptest::prelude::*;

use super::*;
use crate::Suspend;
use crate::machine::recorder::Recorder;

const DATA: u64 = 0;
const INTERRUPT_ENABLE: u64 = super::INTERRUPT_ENABLE as u64;
const MODEM_CONTROL: u64 = super::MODEM_CONTROL as u64;

#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct NoSpace;

impl Write for NoSpace {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::StorageFull.into())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn port(out: impl Write + Send + 'static) -> (Serial, Arc<AtomicUsize>, Arc<Recorder>) {
    let line = Arc::new(AtomicUsize::new(0));
    let events = Arc::new(Recorder::default());
    (Serial::new(line.clone(), events.clone(), Box::new(out)).unwrap(), line, events)
}

#[test]
fn output_is_written_and_its_first_byte_reported_once() {
    let out = Output::default();
    let (serial, _, events) = port(out.clone());
    for byte in b"hi" {
        serial.write(DATA, &[*byte]);
    }
    assert_eq!(*out.0.lock().unwrap(), b"hi");
    assert_eq!(events.take(), [MachineEvent::ConsoleOutput]);
}

#[test]
fn a_full_disk_behind_the_console_does_not_stop_the_guest() {
    let (serial, line, _) = port(NoSpace);
    serial.write(INTERRUPT_ENABLE, &[0b10]);
    let before = line.load(Ordering::SeqCst);
    let mut identification = [0];
    serial.read(2, &mut identification);
    serial.write(DATA, b"x");
    assert_eq!(line.load(Ordering::SeqCst), before + 1, "the transmitter is empty again");
}

#[test]
fn input_waits_until_the_guest_has_read_the_fifo() {
    let (serial, _, _) = port(io::sink());
    let input = serial.input().unwrap();
    serial.write(INTERRUPT_ENABLE, &[1]);
    serial.write(MODEM_CONTROL, &[1]);
    input.drained().read().expect("the port is open");
    let typed = vec![b'a'; input.capacity() + 10];
    assert_eq!(input.enqueue(&typed).unwrap(), typed.len() - 10);
    assert_eq!(input.capacity(), 0);
    assert_eq!(input.enqueue(b"more").unwrap(), 0);
    assert!(input.drained().read().is_err(), "nothing was read");
    for _ in 0..typed.len() - 10 {
        let mut byte = [0];
        serial.read(DATA, &mut byte);
        assert_eq!(byte, *b"a");
    }
    input.drained().read().expect("the guest has read all");
    assert_eq!(input.capacity(), typed.len() - 10);
}

#[test]
fn a_driver_that_probes_the_port_gets_no_input() {
    let (serial, _, _) = port(io::sink());
    let input = serial.input().unwrap();
    // As Linux does it where the port is a console already.
    let probes = [
        (MODEM_CONTROL, 0xb),
        (INTERRUPT_ENABLE, 0xf),
        (INTERRUPT_ENABLE, 0),
        (MODEM_CONTROL, 0x1a),
        (INTERRUPT_ENABLE, 1),
        (MODEM_CONTROL, 0x10),
        (INTERRUPT_ENABLE, 0),
    ];
    for (register, value) in probes {
        serial.write(register, &[value]);
        assert_eq!(input.enqueue(b"x").unwrap(), 0);
        assert!(input.drained().read().is_err());
    }
    serial.write(INTERRUPT_ENABLE, &[1]);
    serial.write(MODEM_CONTROL, &[0xb]);
    input.drained().read().expect("the port is open");
    assert_eq!(input.enqueue(b"x").unwrap(), 1);
    // A console masks interrupts while it writes.
    serial.write(INTERRUPT_ENABLE, &[0]);
    assert_eq!(input.enqueue(b"y").unwrap(), 1);
}

#[test]
fn wide_accesses_are_ignored() {
    let out = Output::default();
    let (serial, _, _) = port(out.clone());
    serial.write(DATA, b"ab");
    assert!(out.0.lock().unwrap().is_empty());
}

const LINE_STATUS: u64 = 5;
const IDENTIFICATION: u64 = 2;

#[test]
fn an_interrupt_that_is_not_acknowledged_is_raised_again_after_a_suspend() {
    for replace in [false, true] {
        let (mut serial, mut line, _) = port(io::sink());
        serial.write(INTERRUPT_ENABLE, &[0b10]);
        assert_eq!(line.load(Ordering::SeqCst), 1, "the transmitter is empty");
        serial.suspend().unwrap();
        if replace {
            let saved = serial.save().unwrap();
            (serial, line, _) = port(io::sink());
            serial.restore(&saved).unwrap();
            assert_eq!(line.load(Ordering::SeqCst), 0);
            assert_eq!(serial.save().unwrap(), saved);
        }
        let before = line.load(Ordering::SeqCst);
        serial.resume().unwrap();
        assert_eq!(line.load(Ordering::SeqCst), before + 1);
        let mut identification = [0];
        serial.read(IDENTIFICATION, &mut identification);
        assert_eq!(identification[0] & 0xf, 0b10, "the transmitter is empty");
        // Acknowledged.
        serial.suspend().unwrap();
        serial.resume().unwrap();
        assert_eq!(line.load(Ordering::SeqCst), before + 1);
    }
}

#[test]
fn input_waits_while_the_port_is_suspended_and_is_kept() {
    let (serial, _, _) = port(io::sink());
    let input = serial.input().unwrap();
    serial.write(INTERRUPT_ENABLE, &[1]);
    serial.write(MODEM_CONTROL, &[1]);
    assert_eq!(input.enqueue(b"ab").unwrap(), 2);
    let room = input.capacity();
    serial.suspend().unwrap();
    assert_eq!((input.capacity(), input.enqueue(b"c").unwrap()), (0, 0));
    let (other, line, events) = port(io::sink());
    other.restore(&serial.save().unwrap()).unwrap();
    let input = other.input().unwrap();
    other.resume().unwrap();
    input.drained().read().expect("there is room again");
    assert_eq!(line.load(Ordering::SeqCst), 1, "there is input");
    assert_eq!(input.capacity(), room);
    let bytes = [0; 2].map(|mut byte| {
        other.read(DATA, std::slice::from_mut(&mut byte));
        byte
    });
    assert_eq!(&bytes, b"ab");
    other.write(DATA, b"x");
    assert_eq!(events.take(), [MachineEvent::ConsoleOutput], "the first process has not reported it");
}

#[test]
fn a_state_that_no_port_can_be_in_is_refused() {
    let (serial, _, _) = port(io::sink());
    assert!(serial.save().is_err(), "it is not suspended");
    serial.suspend().unwrap();
    let mut saved = serial.save().unwrap();
    let text = String::from_utf8(saved.bytes).unwrap();
    let long = format!("\"in_buffer\":{:?}", [0; 100]);
    saved.bytes = text.replace("\"in_buffer\":[]", &long).into_bytes();
    assert!(port(io::sink()).0.restore(&saved).is_err());
}

#[derive(Clone, Debug)]
enum Access {
    Read(u64),
    Write(u64, u8),
    Type(u8),
}

fn accesses() -> impl Strategy<Value = Vec<Access>> {
    let access = prop_oneof![
        (0..8u64).prop_map(Access::Read),
        (0..8u64, any::<u8>()).prop_map(|(offset, value)| Access::Write(offset, value)),
        Just(Access::Write(INTERRUPT_ENABLE, 3)),
        Just(Access::Write(MODEM_CONTROL, 1)),
        any::<u8>().prop_map(Access::Type),
    ];
    prop::collection::vec(access, 0..40)
}

/// Does `accesses`, and gives all that a guest sees of them but for interrupts.
fn seen(serial: &Serial, accesses: &[Access]) -> Vec<usize> {
    let input = serial.input().unwrap();
    let one = |access: &Access| match access {
        Access::Read(offset) => {
            let mut byte = [0];
            serial.read(*offset, &mut byte);
            byte[0].into()
        }
        Access::Write(offset, value) => {
            serial.write(*offset, &[*value]);
            0
        }
        Access::Type(byte) => input.enqueue(&[*byte]).unwrap(),
    };
    accesses.iter().map(one).collect()
}

proptest! {
    #[test]
    fn a_port_that_goes_on_elsewhere_is_the_same(before in accesses(), after in accesses()) {
        let out = [Output::default(), Output::default()];
        let (serial, _, _) = port(out[0].clone());
        seen(&serial, &before);
        serial.suspend().unwrap();
        let (other, _, _) = port(out[1].clone());
        other.restore(&serial.save().unwrap()).unwrap();
        let output = out[0].0.lock().unwrap().len();
        serial.resume().unwrap();
        other.resume().unwrap();
        prop_assert_eq!(seen(&serial, &after), seen(&other, &after));
        prop_assert_eq!(&out[0].0.lock().unwrap()[output..], &out[1].0.lock().unwrap()[..]);
        let mut status = [0, 0];
        let (left, right) = status.split_at_mut(1);
        serial.read(LINE_STATUS, left);
        other.read(LINE_STATUS, right);
        prop_assert_eq!(left, right);
    }
}
