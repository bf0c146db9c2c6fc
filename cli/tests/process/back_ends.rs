//! Devices of a confined VM whose back end goes while the guest's driver starts the device, restarts it, or the VM is
//! paused and goes on: its requests fail and the guest runs on.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;

use instance::api::{VmUpdate, WantedState};

use crate::tiny::served;
use crate::vm::{Place, Vm};

// Requests of vhost-user.
const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const GET_PROTOCOL_FEATURES: u32 = 15;
const GET_QUEUE_NUM: u32 = 17;
const SET_VRING_ENABLE: u32 = 18;

/// VERSION_1, EVENT_IDX, INDIRECT_DESC, the protocol's features.
const FEATURES: u64 = 1 << 32 | 1 << 29 | 1 << 28 | 1 << 30;
/// MQ and REPLY_ACK.
const PROTOCOL_FEATURES: u64 = 1 | 1 << 3;
/// The version, with the bits of answers and of requests that want one.
const IS_REPLY: u32 = 1 | 4;
const NEEDS_REPLY: u32 = 8;

/// How a back end goes.
#[derive(Clone, Copy, Debug)]
enum End {
    /// It ends the connection.
    Closes,
    /// It says nothing any more.
    Hangs,
}

/// A back end that serves nothing.
struct BackEnd {
    thread: JoinHandle<()>,
    /// What it was asked for.
    asked: Receiver<u32>,
}

impl BackEnd {
    /// One that listens in `place` and goes, as `end` says, when it is asked for `last` for the time `count`.
    fn listen(place: &Place, last: u32, mut count: usize, end: End) -> Self {
        let listener = UnixListener::bind(place.path("back-end")).unwrap();
        let (sender, asked) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut socket = listener.accept().unwrap().0;
            while let Some((request, needs_reply, payload)) = receive(&mut socket) {
                let _ = sender.send(request);
                count -= usize::from(request == last);
                if count == 0 {
                    match end {
                        End::Closes => return,
                        // Until the other end is closed.
                        End::Hangs => return drop(socket.read_to_end(&mut Vec::new())),
                    }
                }
                let answer = match request {
                    GET_FEATURES => FEATURES.to_le_bytes().to_vec(),
                    GET_PROTOCOL_FEATURES => PROTOCOL_FEATURES.to_le_bytes().to_vec(),
                    GET_QUEUE_NUM => 2_u64.to_le_bytes().to_vec(),
                    GET_VRING_BASE => payload,
                    _ if needs_reply => 0_u64.to_le_bytes().to_vec(),
                    _ => continue,
                };
                let length = u32::try_from(answer.len()).unwrap();
                let header = [request, IS_REPLY, length].map(u32::to_le_bytes).concat();
                if socket.write_all(&[header, answer].concat()).is_err() {
                    return;
                }
            }
        });
        Self { thread, asked }
    }

    /// Waits until it is asked for `request`.
    fn wait_for(&self, request: u32) {
        while self.asked.recv_timeout(crate::vm::WATCHDOG).unwrap() != request {}
    }
}

/// A request, whether it wants an answer, and its payload. Descriptors that come with it are dropped.
fn receive(socket: &mut UnixStream) -> Option<(u32, bool, Vec<u8>)> {
    let mut header = [0; 12];
    socket.read_exact(&mut header).ok()?;
    let word = |index: usize| u32::from_le_bytes(header[index * 4..][..4].try_into().unwrap());
    let mut payload = vec![0; word(2) as usize];
    socket.read_exact(&mut payload).ok()?;
    Some((word(0), word(1) & NEEDS_REPLY != 0, payload))
}

fn boot(place: &Place) -> Vm {
    let device = format!("fs={},tag=x", place.path("back-end").display());
    let mut vm = Vm(place.boot(&["--vhost-user", &device]).spawn().unwrap());
    vm.wait_until_ready();
    vm
}

/// Expects that the guest is told that its device is not connected, and ends by itself.
fn expect_refusal(mut vm: Vm, place: &Place, case: &str) {
    let mut answer = Vec::new();
    vm.0.stdout.take().unwrap().read_to_end(&mut answer).unwrap();
    let (code, errors) = vm.finish();
    assert_eq!((code, errors.lines().count()), (Some(0), 1), "{case}: {errors}");
    assert!(
        errors.contains("the back end of the device is lost; requests fail from now on"),
        "{case}: {errors}"
    );
    assert_eq!(answer, (-libc::ENOTCONN).to_le_bytes(), "{case}");
    assert!(place.is_clean(), "{case}");
}

#[test]
fn a_back_end_that_is_lost_while_its_driver_starts_the_device_costs_the_guest_the_device_alone() {
    let mut rows: Vec<_> = [
        SET_FEATURES,
        SET_MEM_TABLE,
        SET_VRING_NUM,
        SET_VRING_ADDR,
        SET_VRING_BASE,
        SET_VRING_CALL,
        SET_VRING_KICK,
        SET_VRING_ENABLE,
    ]
    .map(|request| (request, End::Closes))
    .to_vec();
    rows.push((SET_MEM_TABLE, End::Hangs));
    for (request, end) in rows {
        let Some(place) = Place::new(served::asking()) else { return };
        let back_end = BackEnd::listen(&place, request, 1, end);
        expect_refusal(boot(&place), &place, &format!("{request} {end:?}"));
        back_end.thread.join().unwrap();
    }
}

#[test]
fn a_back_end_that_is_lost_while_its_driver_resets_the_device_costs_the_guest_the_device_alone() {
    for (request, count) in [(GET_VRING_BASE, 1), (SET_MEM_TABLE, 2)] {
        let Some(place) = Place::new(served::restarting()) else { return };
        let back_end = BackEnd::listen(&place, request, count, End::Closes);
        expect_refusal(boot(&place), &place, &format!("{request}"));
        back_end.thread.join().unwrap();
    }
}

#[test]
fn a_back_end_that_is_lost_while_the_vm_is_paused_or_resumed_costs_the_guest_the_device_alone() {
    for (request, count) in [(GET_VRING_BASE, 1), (SET_MEM_TABLE, 2)] {
        let Some(place) = Place::new(served::asking()) else { return };
        let back_end = BackEnd::listen(&place, request, count, End::Closes);
        let vm = boot(&place);
        back_end.wait_for(SET_VRING_ENABLE);
        let mut client = place.client("vm");
        for state in [WantedState::Paused, WantedState::Resumed] {
            client.send("PATCH", "/vm", &VmUpdate { state }).unwrap();
        }
        expect_refusal(vm, &place, &format!("{request}"));
        back_end.thread.join().unwrap();
    }
}
