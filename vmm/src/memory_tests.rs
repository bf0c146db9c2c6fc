use std::io::Write;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use vm_memory::GuestMemoryBackend;

use super::*;

fn ram(length: u64) -> Arc<GuestMemoryMmap> {
    reserve(&[(GuestAddress(0), length)]).unwrap()
}

#[test]
fn what_goes_on_has_huge_pages_where_its_file_has_holes() {
    use std::os::unix::fs::MetadataExt;
    const MIB: u64 = 1 << 20;
    let file = tempfile::tempfile().unwrap();
    file.set_len(40 * MIB).unwrap();
    // In three pieces of 2 MiB of the first region, of which two are side by side, and in the last of the second.
    for place in [5 * MIB, 7 * MIB + 4096, 12 * MIB, 40 * MIB - 1] {
        file.write_all_at(b"x", place).unwrap();
    }
    let regions = [(GuestAddress(0), 30 * MIB), (GuestAddress(1 << 32), 10 * MIB)];
    let page = |place, is_written| Touched { place, bytes: 4096, is_written };
    // Those beyond a region, or of no mapping of the file, do no harm.
    let touched =
        [page(5 * MIB, true), page(12 * MIB, false), page(30 * MIB - 4096, true), page(90 * MIB, true)];
    let memory = reserve_copy(&regions, &file, &touched).unwrap();
    let address =
        |place: u64| GuestAddress(if place < 30 * MIB { place } else { (1 << 32) + place - 30 * MIB });
    for place in (0..40 * MIB).step_by(1 << 19).chain([7 * MIB + 4096, 40 * MIB - 1]) {
        let mut expected = [0];
        file.read_exact_at(&mut expected, place).unwrap();
        assert_eq!(memory.read_obj::<u8>(address(place)).unwrap(), expected[0], "{place:#x}");
        memory.write_obj(!expected[0], address(place)).unwrap();
        let mut after = [0];
        file.read_exact_at(&mut after, place).unwrap();
        assert_eq!((after, memory.read_obj::<u8>(address(place)).unwrap()), (expected, !expected[0]));
    }
    let inode = file.metadata().unwrap().ino().to_string();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let of_file = maps.lines().filter(|line| line.split_whitespace().nth(4) == Some(&inode));
    let bytes = of_file.map(|line| {
        let (from, to) = line.split_whitespace().next().unwrap().split_once('-').unwrap();
        u64::from_str_radix(to, 16).unwrap() - u64::from_str_radix(from, 16).unwrap()
    });
    let mut bytes: Vec<_> = bytes.collect();
    bytes.sort_unstable();
    assert_eq!(bytes, [2 * MIB, 2 * MIB, 4 * MIB]);
}

#[test]
fn shared_memory_begins_as_its_file_and_leaves_that_alone() {
    const MIB: u64 = 1 << 20;
    let file = tempfile::tempfile().unwrap();
    file.set_len(40 * MIB).unwrap();
    // One is over the end of the first region, and one is more than is read in one go.
    for (place, length) in [(0, 1), (5 * MIB + 4095, 2), (30 * MIB - 5000, 10_000), (31 * MIB, 9 * MIB)] {
        file.write_all_at(&vec![7; usize::try_from(length).unwrap()], place).unwrap();
    }
    let regions = [(GuestAddress(0), 30 * MIB), (GuestAddress(1 << 32), 10 * MIB)];
    let memory = reserve_shared_copy(&regions, &file, &[]).unwrap();
    // Before it is read, which makes pages.
    let blocks = |file: &File| std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
    // They are of one file.
    let copies = blocks(memory.iter().next().unwrap().file_offset().unwrap().file());
    assert!(copies <= blocks(&file) + 16, "{copies} {}", blocks(&file));
    let mut next = 0;
    for (region, (address, length)) in memory.iter().zip(regions) {
        let (mut expected, mut found) = (vec![0; usize::try_from(length).unwrap()], Vec::new());
        file.read_exact_at(&mut expected, next).unwrap();
        found.resize(expected.len(), 1);
        memory.read_slice(&mut found, address).unwrap();
        assert!(found == expected);
        let shared = region.file_offset().unwrap();
        shared.file().read_exact_at(&mut found, shared.start()).unwrap();
        assert!(found == expected);
        memory.write_obj(9_u8, address).unwrap();
        let mut first = [0];
        file.read_exact_at(&mut first, next).unwrap();
        assert_eq!(first[0], expected[0]);
        next += length;
    }
}

#[test]
fn regions_start_at_huge_pages() {
    let memory = reserve(&[(GuestAddress(0), 16 << 20), (GuestAddress(4 << 30), 4096)]).unwrap();
    for region in memory.iter() {
        assert_eq!(region.as_ptr() as usize % HUGE_PAGE, 0);
    }
    memory.write_obj(7_u64, GuestAddress((4 << 30) + 4088)).unwrap();
    assert!(memory.write_obj(7_u64, GuestAddress((4 << 30) + 4089)).is_err());
}

#[test]
fn more_than_the_address_space_is_an_error() {
    for reserve in [reserve, reserve_shared] {
        assert!(matches!(reserve(&[(GuestAddress(0), 1 << 62)]), Err(MemoryError::Reserve { .. })));
    }
}

#[test]
fn shared_memory_is_what_its_file_says_and_keeps_its_length() {
    let memory = reserve_shared(&[(GuestAddress(0), 4 << 20), (GuestAddress(4 << 30), 8192)]).unwrap();
    memory.write_obj(7_u64, GuestAddress((4 << 30) + 8184)).unwrap();
    for region in memory.iter() {
        assert_eq!(region.as_ptr() as usize % HUGE_PAGE, 0);
    }
    let region = memory.find_region(GuestAddress(4 << 30)).unwrap();
    let file = region.file_offset().unwrap();
    // Behind the region before it.
    assert_eq!(file.start(), 4 << 20);
    let mut bytes = [0; 8];
    file.file().read_exact_at(&mut bytes, file.start() + 8184).unwrap();
    assert_eq!(u64::from_ne_bytes(bytes), 7);
    file.file().write_all_at(&[9], file.start()).unwrap();
    assert_eq!(memory.read_obj::<u8>(GuestAddress(4 << 30)).unwrap(), 9);
    assert!(file.file().set_len(4096).is_err() && file.file().set_len(1 << 20).is_err());
}

#[test]
fn private_memory_has_no_file() {
    assert!(ram(1 << 20).iter().all(|region| region.file_offset().is_none()));
}

#[test]
fn a_range_outside_ram_or_file_is_an_error() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 21).unwrap();
    for (address, offset) in [(1 << 20, 0), ((1 << 20) - 4096, 0), (u64::MAX - 4095, 0), (0, (1 << 21) - 1)] {
        let result = read_file(&ram(1 << 20), GuestAddress(address), &file, offset, 8192);
        assert!(matches!(result, Err(MemoryError::Fill { .. })), "{address:#x} {offset:#x}");
    }
}

proptest! {
    #[test]
    fn the_guest_finds_the_bytes_of_the_file_and_nothing_else_changes(
        content in proptest::collection::vec(any::<u8>(), 1..40_000),
        start in 0..20_000_u64,
        offset in 0..10_000_u64,
    ) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content).unwrap();
        let length = content.len() as u64;
        let offset = offset.min(length - 1);
        let memory = ram(1 << 20);
        memory.write_slice(&[0xaa; 1 << 20], GuestAddress(0)).unwrap();
        read_file(&memory, GuestAddress(start), &file, offset, length - offset).unwrap();

        let mut expected = vec![0xaa; 1 << 20];
        let at = usize::try_from(start).unwrap();
        let part = &content[usize::try_from(offset).unwrap()..];
        expected[at..at + part.len()].copy_from_slice(part);
        let mut found = vec![0; 1 << 20];
        memory.read_slice(&mut found, GuestAddress(0)).unwrap();
        prop_assert!(found == expected);
    }
}
