//! A layer's image that was damaged: it can't be merged, or there is another tree in it.

#![no_main]

use std::os::unix::fs::FileExt;
use std::sync::LazyLock;

use erofs::{BLOCK, Limits, merge, write_layer};
use fuzz::memory_file;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

/// Where the superblock is, and its checksum in it.
const SUPER: usize = 1024;
const CHECKSUM: std::ops::Range<usize> = SUPER + 4..SUPER + 8;

/// A change of the image.
#[derive(Arbitrary, Debug)]
enum Change {
    Byte { at: u16, value: u8 },
    Number { at: u16, value: u32 },
    Copy { from: u16, to: u16, length: u8 },
    Append(Vec<u8>),
    Cut(u16),
}

/// An image with a file of each kind, with attributes and directories of more than a block.
static IMAGE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |kind, name: &str, link: &str, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        (header.set_uid(0), header.set_gid(0), header.set_mtime(0)).1;
        if link.is_empty() {
            builder.append_data(&mut header, name, data).expect("it is in memory");
        } else {
            builder.append_link(&mut header, name, link).expect("it is in memory");
        }
    };
    for number in 0..40 {
        add(tar::EntryType::Regular, &format!("many/{}{number}", "x".repeat(120)), "", b"");
    }
    add(tar::EntryType::XHeader, "x", "", b"30 SCHILY.xattr.user.x=value1\n");
    add(tar::EntryType::Regular, "a/file", "", b"data");
    add(tar::EntryType::Link, "a/again", "a/file", b"");
    add(tar::EntryType::Symlink, "a/link", "file", b"");
    add(tar::EntryType::Fifo, "pipe", "", b"");
    add(tar::EntryType::Regular, "a/.wh.hidden", "", b"");
    add(tar::EntryType::Regular, "b/.wh..wh..opq", "", b"");
    let tar = builder.into_inner().expect("it is in memory");
    let (image, _) = memory_file(0);
    let layer = write_layer(&*tar, &image, [1; 16], &Limits::default()).expect("it is a layer");
    let mut bytes = vec![0; usize::try_from(u64::from(layer.blocks) * BLOCK).expect("it is small")];
    image.read_exact_at(&mut bytes, 0).expect("it is there");
    bytes
});

fuzz_target!(|changes: Vec<Change>| {
    let mut bytes = IMAGE.clone();
    for change in changes.iter().take(64) {
        let length = bytes.len().max(1);
        let mut put = |at: usize, values: &[u8]| {
            for (place, value) in bytes.iter_mut().skip(at % length).zip(values) {
                *place = *value;
            }
        };
        match change {
            Change::Byte { at, value } => put((*at).into(), &[*value]),
            Change::Number { at, value } => put(usize::from(*at) & !3, &value.to_le_bytes()),
            Change::Copy { from, to, length } => {
                let copied: Vec<u8> =
                    bytes.iter().skip(usize::from(*from)).take(usize::from(*length)).copied().collect();
                bytes.iter_mut().skip(usize::from(*to)).zip(copied).for_each(|(place, value)| *place = value);
            }
            Change::Append(more) => bytes.extend(more),
            Change::Cut(left) => bytes.truncate((*left).into()),
        }
    }
    if bytes.len() >= 4096 {
        bytes[CHECKSUM].fill(0);
        let checksum = !crc32c::crc32c(&bytes[SUPER..4096]);
        bytes[CHECKSUM].copy_from_slice(&checksum.to_le_bytes());
    }
    let (image, _) = memory_file(0);
    image.write_all_at(&bytes, 0).expect("there is memory");
    let (good, _) = memory_file(0);
    good.write_all_at(&IMAGE, 0).expect("there is memory");
    let (out, _) = memory_file(0);
    let _ = merge(&[good, image], &out, [9; 16]);
});
