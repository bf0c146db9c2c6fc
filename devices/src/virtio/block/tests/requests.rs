//! Requests that a driver may make.

use std::sync::atomic::Ordering;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::super::super::testing::dump;
use super::*;

#[test]
fn what_is_written_is_read_back_and_in_the_file() {
    for with in BOTH {
        let file = image(8);
        let mut rig = Rig::new(with, file.path(), false);
        assert_eq!(rig.write(3, &[0xaa; 1024]), (0, 1));
        assert_eq!(rig.read(2, 2048), (0, 2049, [[3; 512], [0xaa; 512], [0xaa; 512], [6; 512]].concat()));
        assert_eq!(&content(file.path())[3 * 512..5 * 512], [0xaa; 1024]);
        assert_eq!(rig.request(VIRTIO_BLK_T_FLUSH, 0, &[]), (0, 1));
    }
}

#[test]
fn data_is_scattered_over_buffers_of_any_size_and_over_memory_regions() {
    for with in BOTH {
        let file = image(4);
        let mut rig = Rig::new(with, file.path(), false);
        // The second buffer lies in two regions.
        let buffers = [(DATA, 100, WRITE), (0x4_0000 - 300, 1000, WRITE), (0x100_0001, 948, WRITE)];
        assert_eq!(rig.request(VIRTIO_BLK_T_IN, 0, &buffers), (0, 2049));
        let mut read = Vec::new();
        for (at, length, _) in buffers {
            read.extend(rig.driver.read(at, length as usize));
        }
        assert_eq!(read, content(file.path()));

        rig.driver.write(DATA, &[7; 100]);
        rig.driver.write(0x4_0000 - 300, &[8; 412]);
        assert_eq!(rig.request(VIRTIO_BLK_T_OUT, 1, &[(DATA, 100, 0), (0x4_0000 - 300, 412, 0)]), (0, 1));
        assert_eq!(content(file.path())[512..1024], [vec![7; 100], vec![8; 412]].concat());
    }
}

#[test]
fn header_and_status_may_be_split_or_share_buffers_with_data() {
    for with in BOTH {
        let file = image(4);
        let mut rig = Rig::new(with, file.path(), false);
        // The header in three parts, an empty buffer, and the status behind the data.
        let (header, _) = rig.header(VIRTIO_BLK_T_IN, 1);
        let chain =
            [(header, 3, 0), (header + 3, 9, 0), (header + 12, 4, 0), (DATA, 0, WRITE), (DATA, 513, WRITE)];
        rig.driver.add(&chain);
        rig.run(1);
        assert_eq!(rig.driver.take_used()[0].1, 513);
        assert_eq!(rig.driver.read(DATA, 513), [vec![2; 512], vec![0]].concat());

        // Header and data to write in one.
        let (header, status) = rig.header(VIRTIO_BLK_T_OUT, 2);
        rig.driver.write(DATA, &rig.driver.read(header, 16));
        rig.driver.write(DATA + 16, &[9; 512]);
        rig.driver.add(&[(DATA, 528, 0), (status, 1, WRITE)]);
        rig.run(1);
        assert_eq!(rig.driver.read(status, 1), [0]);
        assert_eq!(content(file.path())[1024..1536], [9; 512]);
    }
}

#[test]
fn an_indirect_table_is_a_chain_like_any_other() {
    for with in BOTH {
        let file = image(4);
        let mut rig = Rig::new(with, file.path(), false);
        let (header, status) = rig.header(VIRTIO_BLK_T_IN, 1);
        rig.driver.add_indirect(DATA + 0x1000, &[(header, 16, 0), (DATA, 512, WRITE), (status, 1, WRITE)]);
        rig.run(1);
        assert_eq!(rig.driver.take_used()[0].1, 513);
        assert_eq!(rig.driver.read(DATA, 512), [2; 512]);
    }
}

#[test]
fn the_disk_tells_its_id_padded_or_cut() {
    let file = image(1);
    let mut rig = Rig::new(With::Direct, file.path(), false);
    assert_eq!(rig.request(VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 20, WRITE)]), (0, 21));
    assert_eq!(rig.driver.read(DATA, 20), b"disk-1\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(rig.request(VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 4, WRITE)]), (0, 5));
    assert_eq!(rig.request(VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 99, WRITE)]), (0, 21));
}

#[test]
fn zeroed_and_discarded_sectors_read_as_zeros_whatever_the_file_system_can_do() {
    // tmpfs has no FALLOC_FL_ZERO_RANGE, so zeros are written.
    for directory in [std::env::temp_dir(), "/dev/shm".into()] {
        for with in BOTH {
            for (kind, flags) in
                [(VIRTIO_BLK_T_WRITE_ZEROES, 0), (VIRTIO_BLK_T_WRITE_ZEROES, 1), (VIRTIO_BLK_T_DISCARD, 0)]
            {
                let file = image_in(&directory, 8);
                let mut rig = Rig::new(with, file.path(), false);
                assert_eq!(rig.range(kind, 2, 3, flags), (0, 1), "{kind} in {directory:?} with {with:?}");
                let mut expected = content(image(8).path());
                expected[2 * 512..5 * 512].fill(0);
                assert_eq!(content(file.path()), expected);
            }
        }
    }
}

#[test]
fn many_zeros_are_written_in_parts() {
    for with in BOTH {
        let file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
        let bytes = 3 * 1024 * 1024 + 512;
        std::fs::write(file.path(), vec![1; bytes + 512]).unwrap();
        let mut rig = Rig::new(with, file.path(), false);
        let sectors = u32::try_from(bytes / 512).unwrap();
        assert_eq!(rig.range(VIRTIO_BLK_T_WRITE_ZEROES, 0, sectors, 0), (0, 1));
        assert_eq!(content(file.path()), [vec![0; bytes], vec![1; 512]].concat());
    }
}

#[test]
fn a_batch_is_answered_with_one_interrupt() {
    for with in BOTH {
        let file = image(8);
        let mut rig = Rig::new(with, file.path(), false);
        // Warm: what the page cache has completes at once.
        rig.read(0, 4096);
        let before = rig.driver.counters.used();
        rig.driver.set_used_event(1);
        for i in 0..20 {
            rig.add(VIRTIO_BLK_T_IN, 0, &[(DATA + 512 * i, 512, WRITE)]);
        }
        rig.run(20);
        assert_eq!(rig.driver.take_used().len(), 20);
        wait_until(|| rig.driver.counters.used() == before + 1);
        // The device is to be notified of the next chain.
        wait_until(|| rig.driver.available_event() == 21);
    }
}

#[test]
fn requests_cost_few_system_calls_and_a_batch_as_many_as_one() {
    let file = image(8);
    let disk = Disk::open(file.path(), true, ImageFormat::Detect).unwrap();
    let engine = Engine::open();
    let Engine::Uring(uring) = &engine else { panic!("this host has no io_uring to test") };
    let calls = uring.calls.clone();
    let calls = || calls.load(Ordering::SeqCst);
    let mut rig = Rig::with_engine(disk, engine, Driver::with_event_idx(256), RateLimits::default());
    for (batches, requests) in [(100, 1), (100, 32)] {
        let before = calls();
        for _ in 0..batches {
            for i in 0..requests {
                rig.add(VIRTIO_BLK_T_IN, 0, &[(DATA + 4096 * u64::from(i), 4096, WRITE)]);
            }
            rig.run(requests);
            let used = rig.driver.take_used();
            assert_eq!(used.len(), usize::from(requests));
            // The thread sees no part of the next batch.
            let all = rig.driver.available_index();
            wait_until(|| rig.driver.available_event() == all);
        }
        // To hand the requests over, and to wait for the next ones. A notification that comes late costs one more.
        let calls = calls() - before;
        assert!(
            calls <= 3 * batches + 10,
            "{calls} system calls for {batches} batches of {requests} requests"
        );
    }
}

#[test]
fn a_driver_that_wants_no_interrupt_gets_none() {
    for with in BOTH {
        let file = image(1);
        let mut rig = Rig::with_driver(with, file.path(), false, Driver::new(16));
        rig.driver.set_available_flags(1);
        assert_eq!(rig.read(0, 512).0, 0);
        assert_eq!(rig.driver.counters.used(), 0);
        rig.driver.set_available_flags(0);
        assert_eq!(rig.read(0, 512).0, 0);
        wait_until(|| rig.driver.counters.used() == 1);
    }
}

#[test]
fn more_requests_than_may_be_in_flight_are_all_answered() {
    for with in BOTH {
        let file = image(8);
        let mut rig = Rig::new(with, file.path(), false);
        // What frees blocks is never done at once: io_uring gives it to a thread.
        let (header, status) = rig.header(VIRTIO_BLK_T_DISCARD, 0);
        rig.driver.write(DATA, &[0; 8]);
        rig.driver.write(DATA + 8, &[1, 0, 0, 0, 0, 0, 0, 0]);
        let head = rig.driver.add(&[(header, 16, 0), (DATA, 16, 0), (status, 1, WRITE)]);
        for _ in 1..256 {
            rig.driver.make_available(head);
        }
        rig.run(256);
        assert_eq!(rig.driver.take_used().len(), 256);
        assert!(!rig.driver.counters.broken());
    }
}

#[test]
fn after_a_reset_the_device_works_again_and_nothing_is_left_in_flight() {
    for with in BOTH {
        let file = image(8);
        let mut rig = Rig::busy(with, file.path());
        rig.block.reset().unwrap();
        let (used, memory) = (rig.driver.used_count(), dump(&rig.driver.memory));
        rig.notify();
        rig.block.reset().unwrap();
        assert_eq!(rig.driver.used_count(), used);
        assert!(dump(&rig.driver.memory) == memory);

        let driver = Driver::with_event_idx(256);
        rig.block.activate(driver.activation(1 << VIRTIO_BLK_F_FLUSH)).unwrap();
        rig.driver = driver;
        assert_eq!(rig.write(0, &[1; 512]), (0, 1));
    }
}

#[test]
fn a_reset_waits_for_what_is_in_flight() {
    for with in BOTH {
        let file = image(200);
        let mut rig = Rig::new(with, file.path(), false);
        for sector in 0..80 {
            let segment = DATA + 16 * sector;
            rig.driver.write(segment, &(2 * sector).to_le_bytes());
            rig.driver.write(segment + 8, &1u64.to_le_bytes());
            rig.add(VIRTIO_BLK_T_WRITE_ZEROES, 0, &[(segment, 16, 0)]);
        }
        rig.notify();
        rig.block.reset().unwrap();
        // What was taken is done, and what was not taken is not done later.
        let zeroed = || content(file.path()).chunks(1024).filter(|pair| pair[0] == 0).count();
        let at_reset = zeroed();
        assert!(at_reset >= usize::from(rig.driver.used_count()), "{with:?}");
        rig.block.reset().unwrap();
        assert_eq!(zeroed(), at_reset, "{with:?}");
    }
}

#[test]
fn without_flush_a_write_is_durable_when_answered() {
    for with in BOTH {
        let file = image(8);
        let driver = Driver::new(16);
        let mut rig = Rig::new(with, file.path(), false);
        rig.block.reset().unwrap();
        rig.block.activate(driver.activation(0)).unwrap();
        rig.driver = driver;
        assert_eq!(rig.write(0, &[5; 512]), (0, 1));
        assert_eq!(rig.read(0, 512), (0, 513, vec![5; 512]));
    }
}
