//! Random valid requests against a disk that is a vector of bytes.

use proptest::prelude::*;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_WRITE_ZEROES};

use super::*;

const SECTORS: u8 = 64;

#[derive(Clone, Debug)]
enum Step {
    Read { sector: u64, cuts: Vec<u32> },
    Write { sector: u64, cuts: Vec<u32>, seed: u8 },
    Zero { kind: u32, sector: u64, sectors: u32, unmap: bool },
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    let place = 0..u64::from(SECTORS);
    let cuts = prop::collection::vec(1..1500u32, 0..5);
    prop_oneof![
        (place.clone(), cuts.clone()).prop_map(|(sector, cuts)| Step::Read { sector, cuts }),
        (place.clone(), cuts, any::<u8>()).prop_map(|(sector, cuts, seed)| Step::Write {
            sector,
            cuts,
            seed
        }),
        (any::<bool>(), place, 1..16u32, any::<bool>()).prop_map(|(discard, sector, sectors, unmap)| {
            let kind = if discard { VIRTIO_BLK_T_DISCARD } else { VIRTIO_BLK_T_WRITE_ZEROES };
            Step::Zero { kind, sector, sectors, unmap: unmap && !discard }
        }),
        Just(Step::Flush),
    ]
}

/// Buffers of the lengths in `cuts` and of what is missing to whole sectors, apart from each other.
fn buffers(cuts: &[u32], flags: u16) -> Vec<(u64, u32, u16)> {
    let sum: u32 = cuts.iter().sum();
    let rest = (sum / 512 + 1) * 512 - sum;
    let places = (0..).map(|i| DATA + 0x800 * i);
    cuts.iter().chain([&rest]).zip(places).map(|(&length, at)| (at, length, flags)).collect()
}

/// A device and what its disk has to hold.
struct Model {
    rig: Rig,
    bytes: Vec<u8>,
}

impl Model {
    fn range(&self, sector: u64, length: usize) -> Option<std::ops::Range<usize>> {
        let start = usize::try_from(sector).unwrap() * 512;
        (start + length <= self.bytes.len()).then_some(start..start + length)
    }

    fn read(&mut self, sector: u64, cuts: &[u32]) -> Result<(), TestCaseError> {
        let chain = buffers(cuts, WRITE);
        let (status, written) = self.rig.request(VIRTIO_BLK_T_IN, sector, &chain);
        let range = self.range(sector, total(&chain));
        prop_assert_eq!(status == 0, range.is_some());
        if let Some(range) = range {
            prop_assert_eq!(written as usize, range.len() + 1);
            let read: Vec<u8> =
                chain.iter().flat_map(|&(at, length, _)| self.rig.driver.read(at, length as usize)).collect();
            prop_assert_eq!(&read[..], &self.bytes[range]);
        }
        Ok(())
    }

    fn write(&mut self, sector: u64, cuts: &[u32], seed: u8) -> Result<(), TestCaseError> {
        let chain = buffers(cuts, 0);
        let data: Vec<u8> = (0..=250).map(|i| seed ^ i).cycle().take(total(&chain)).collect();
        let mut rest = &data[..];
        for &(at, length, _) in &chain {
            let (now, later) = rest.split_at(length as usize);
            self.rig.driver.write(at, now);
            rest = later;
        }
        let (status, written) = self.rig.request(VIRTIO_BLK_T_OUT, sector, &chain);
        let range = self.range(sector, data.len());
        prop_assert_eq!((status == 0, written), (range.is_some(), 1));
        if let Some(range) = range {
            self.bytes[range].copy_from_slice(&data);
        }
        Ok(())
    }

    fn zero(&mut self, kind: u32, sector: u64, sectors: u32, unmap: bool) -> Result<(), TestCaseError> {
        let (status, _) = self.rig.range(kind, sector, sectors, u32::from(unmap));
        let range = self.range(sector, sectors as usize * 512);
        prop_assert_eq!(status == 0, range.is_some());
        if let Some(range) = range {
            self.bytes[range].fill(0);
        }
        Ok(())
    }
}

fn total(chain: &[(u64, u32, u16)]) -> usize {
    chain.iter().map(|&(_, length, _)| length as usize).sum()
}

fn check(with: With, directory: &Path, steps: &[Step]) -> Result<(), TestCaseError> {
    let file = image_in(directory, SECTORS);
    let mut model = Model { rig: Rig::new(with, file.path(), false), bytes: content(file.path()) };
    for step in steps {
        match step {
            Step::Read { sector, cuts } => model.read(*sector, cuts)?,
            Step::Write { sector, cuts, seed } => model.write(*sector, cuts, *seed)?,
            Step::Zero { kind, sector, sectors, unmap } => model.zero(*kind, *sector, *sectors, *unmap)?,
            Step::Flush => prop_assert_eq!(model.rig.request(VIRTIO_BLK_T_FLUSH, 0, &[]), (0, 1)),
        }
    }
    prop_assert_eq!(content(file.path()), model.bytes);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_disk_is_what_was_written_to_it(steps in prop::collection::vec(step(), 1..30)) {
        for with in BOTH {
            check(with, &std::env::temp_dir(), &steps)?;
            check(with, Path::new("/dev/shm"), &steps)?;
        }
    }
}
