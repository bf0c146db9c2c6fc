//! With a back end as it should be.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use super::peer::{self, Answer, Message};
use super::*;
use crate::lock;
use crate::virtio::VirtioDevice;

#[test]
fn the_driver_sees_the_device_type_and_the_back_ends_features_that_mvm_knows() {
    let (socket, _, _) = peer::back_end(|_| Answer::Right);
    let device = device(socket, DEADLINE).unwrap();
    assert_eq!((device.device_type(), device.features()), (26, 1 << 3));
    assert_eq!(device.queue_sizes(), QUEUES);
    let mut config = [0xff; 8];
    device.read_config(0, &mut config);
    assert_eq!(&config, b"tag\0\0\0\0\0");
    device.read_config(36, &mut config);
    assert_eq!(config, [1, 0, 0, 0, 0, 0, 0, 0]);
    device.read_config(u64::MAX, &mut config);
}

#[test]
fn only_the_protocol_features_that_are_made_use_of_are_taken() {
    let (socket, log, _) = peer::back_end(|_| Answer::Right);
    let _device = device(socket, DEADLINE).unwrap();
    let log = lock(&log);
    let taken = log.iter().find(|message| message.request == peer::SET_PROTOCOL_FEATURES).unwrap();
    assert_eq!(taken.long(0), 1 | 1 << 3);
}

/// A queue as the back end has it, with its own mapping of the guest's memory.
pub(super) struct View {
    memory: GuestMemoryMmap,
    pub(super) queue: Queue,
    kick: File,
    call: File,
}

impl View {
    pub(super) fn of(messages: &[Message], index: u32) -> Self {
        let find = |request, what: fn(&Message) -> u32| {
            messages.iter().find(|message| message.request == request && what(message) == index).unwrap()
        };
        let (table, addresses) = (
            messages.iter().find(|message| message.request == peer::SET_MEM_TABLE).unwrap(),
            find(peer::SET_VRING_ADDR, |message| message.word(0)),
        );
        // For each region: guest address, length, front end's address, offset in the file.
        let field = |region: usize, field: usize| table.long(8 + 32 * region + 8 * field);
        let regions = 0..table.files.len();
        let ranges: Vec<_> = regions
            .clone()
            .map(|region| {
                let file = table.files[region].try_clone().unwrap();
                let length = usize::try_from(field(region, 1)).unwrap();
                (GuestAddress(field(region, 0)), length, Some(FileOffset::new(file, field(region, 3))))
            })
            .collect();
        let guest_address = |ours: u64| {
            let region = regions
                .clone()
                .find(|&region| (field(region, 2)..field(region, 2) + field(region, 1)).contains(&ours));
            GuestAddress(ours - field(region.unwrap(), 2) + field(region.unwrap(), 0))
        };
        let base = find(peer::SET_VRING_BASE, |message| message.word(0)).word(1);
        let size = find(peer::SET_VRING_NUM, |message| message.word(0)).word(1);
        let mut queue = Queue::new(16).unwrap();
        queue.try_set_size(u16::try_from(size).unwrap()).unwrap();
        queue.try_set_desc_table_address(guest_address(addresses.long(8))).unwrap();
        queue.try_set_used_ring_address(guest_address(addresses.long(16))).unwrap();
        queue.try_set_avail_ring_address(guest_address(addresses.long(24))).unwrap();
        queue.set_ready(true);
        let memory = GuestMemoryMmap::from_ranges_with_files(ranges).unwrap();
        queue.set_next_avail(u16::try_from(base).unwrap());
        queue.set_next_used(queue.used_idx(&memory, Ordering::SeqCst).unwrap().0);
        let file = |request| find(request, |message| message.word(0)).files[0].try_clone().unwrap();
        Self { memory, queue, kick: file(peer::SET_VRING_KICK), call: file(peer::SET_VRING_CALL) }
    }

    /// Waits for a notification, and answers what is there with the bytes of the request.
    fn serve(&mut self) {
        self.kick.read_exact(&mut [0; 8]).unwrap();
        self.answer(usize::MAX);
    }

    /// Answers up to `count` requests with their first bytes.
    pub(super) fn answer(&mut self, count: usize) {
        for _ in 0..count {
            let Some(chain) = self.queue.iter(&self.memory).unwrap().next() else { break };
            let head = chain.head_index();
            let [from, to] = chain.collect::<Vec<_>>()[..] else { panic!("two buffers") };
            let mut bytes = [0; 16];
            self.memory.read_slice(&mut bytes, from.addr()).unwrap();
            self.memory.write_slice(&bytes, to.addr()).unwrap();
            self.queue.add_used(&self.memory, head, 16).unwrap();
        }
        self.call.write_all(&1_u64.to_le_bytes()).unwrap();
    }
}

#[test]
fn requests_reach_the_back_end_and_its_answers_the_driver() {
    let (socket, log, _) = peer::back_end(|_| Answer::Right);
    let mut device = device(socket, DEADLINE).unwrap();
    let mut drivers = drivers();
    activate(&mut device, &drivers);
    for (index, driver) in drivers.iter_mut().enumerate() {
        let mut view = View::of(&lock(&log), u32::try_from(index).unwrap());
        let number = 7 + u16::try_from(index).unwrap();
        let head = request(driver, number);
        driver.notifier.write(1).unwrap();
        view.serve();
        let line = driver.counters.line.get().unwrap();
        assert_eq!(line.read().unwrap(), 1, "the back end raises the interrupt itself");
        assert_eq!(driver.take_used(), [(head.into(), 16)]);
        assert_eq!(answer(driver, number)[8..], u64::from(number).to_le_bytes());
    }
}

#[test]
fn a_reset_stops_the_queues_and_the_device_can_be_started_again() {
    let (socket, log, _) = peer::back_end(|_| Answer::Right);
    let mut device = device(socket, DEADLINE).unwrap();
    device.reset().unwrap();
    let requests = |from: usize| lock(&log)[from..].iter().map(|message| message.request).collect::<Vec<_>>();
    let begun = requests(0).len();
    assert!(!requests(0).contains(&peer::GET_VRING_BASE));

    let queue = [
        peer::SET_VRING_NUM,
        peer::SET_VRING_ADDR,
        peer::SET_VRING_BASE,
        peer::SET_VRING_CALL,
        peer::SET_VRING_KICK,
        peer::SET_VRING_ENABLE,
    ];
    let stop = [peer::SET_VRING_ENABLE, peer::GET_VRING_BASE];
    let start = [&[peer::SET_FEATURES, peer::SET_MEM_TABLE][..], &queue, &queue].concat();
    let life = [&start[..], &stop, &stop].concat();
    for turn in 0..3 {
        let drivers = drivers();
        activate(&mut device, &drivers);
        device.reset().unwrap();
        device.reset().unwrap();
        assert_eq!(requests(begun + turn * life.len()), life);
        // No wake-up of a device whose back end lives has a meaning.
        device.woken(0);
        assert_eq!(drivers[0].counters.used(), 0);
    }
    let log = lock(&log);
    let features = log.iter().find(|message| message.request == peer::SET_FEATURES).unwrap();
    assert_eq!(features.long(0), 1 << 32 | 1 << 30 | 1 << 3);
}

#[test]
fn a_queue_that_the_driver_left_out_is_left_out() {
    let (socket, log, _) = peer::back_end(|_| Answer::Right);
    let mut device = device(socket, DEADLINE).unwrap();
    let drivers = drivers();
    let mut activation = Driver::activation_of(&drivers, 1 << 32);
    activation.queues[0] = None;
    device.activate(activation).unwrap();
    device.reset().unwrap();
    let log = lock(&log);
    let enabled = log.iter().filter(|message| message.request == peer::SET_VRING_ENABLE);
    assert_eq!(
        enabled.map(|message| (message.word(0), message.word(1))).collect::<Vec<_>>(),
        [(1, 1), (1, 0)]
    );
}
