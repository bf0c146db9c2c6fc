//! The file of a VM's state: a mark, the version of the format, and sections, each with its name, version and length.

use devices::Section;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Region, SavedVm, SnapshotError};
use crate::arch::current::state::VmState;

/// What the file begins with.
const MARK: &[u8; 8] = b"mvmstate";
/// The version of the format of what follows, in which other versions of sections may come.
const FORMAT: u32 = 1;
/// The version of the section of KVM's state.
const MACHINE: u32 = 1;
/// The section of what KVM knows.
const MACHINE_NAME: &str = "machine";
/// The section of the places of RAM.
const REGIONS_NAME: &str = "memory";
/// Bytes of the name of a section.
const MAX_NAME: usize = 64;
/// Sections of a file: those of 18 virtio devices, of a PC's devices, and the two above.
const MAX_SECTIONS: usize = 64;

fn invalid(what: impl Into<String>) -> SnapshotError {
    SnapshotError::Invalid(what.into())
}

/// The bytes of `saved`.
pub fn encode(saved: &SavedVm) -> Result<Vec<u8>, SnapshotError> {
    let mut out = MARK.to_vec();
    out.extend(FORMAT.to_le_bytes());
    let own = [section(REGIONS_NAME, 1, &saved.regions)?, section(MACHINE_NAME, MACHINE, &saved.machine)?];
    let sections: Vec<&Section> = own.iter().chain(&saved.devices).collect();
    out.extend(length(sections.len())?.to_le_bytes());
    for Section { kind, version, bytes } in sections {
        for (length, part) in [(length(kind.len())?, kind.as_bytes()), (length(bytes.len())?, bytes)] {
            out.extend(length.to_le_bytes());
            out.extend(part);
        }
        out.extend(version.to_le_bytes());
    }
    Ok(out)
}

/// A section of this module's own.
fn section(name: &str, version: u32, state: &impl Serialize) -> Result<Section, SnapshotError> {
    let bytes = postcard::to_stdvec(state).map_err(|error| invalid(error.to_string()))?;
    Ok(Section { kind: name.to_owned(), version, bytes })
}

fn length(length: usize) -> Result<u32, SnapshotError> {
    u32::try_from(length).map_err(|_| invalid("a part of it is too long"))
}

/// Reads bytes that [`encode`] gave, or anybody.
pub fn decode(bytes: &[u8]) -> Result<SavedVm, SnapshotError> {
    let mut rest = Reader(bytes);
    if rest.take(MARK.len()).ok() != Some(MARK) {
        return Err(invalid("it does not begin as one of mvm's"));
    }
    match rest.number()? {
        FORMAT => {}
        newer @ FORMAT.. => {
            let message = format!(
                "its format has version {newer}, and this mvm knows {FORMAT}: use the mvm that has written it, or a newer one"
            );
            return Err(invalid(message));
        }
        older => return Err(invalid(format!("there is no version {older} of its format"))),
    }
    let count = rest.bounded(MAX_SECTIONS, "sections")?;
    let mut sections = Vec::new();
    for _ in 0..count {
        sections.push(rest.section()?);
    }
    if !rest.0.is_empty() {
        return Err(invalid("something follows its end"));
    }
    let mut sections = sections.into_iter();
    let regions: Vec<Region> = own(sections.next(), REGIONS_NAME, 1)?;
    let machine: VmState = own(sections.next(), MACHINE_NAME, MACHINE)?;
    Ok(SavedVm { machine, devices: sections.collect(), regions })
}

/// The content of a section of this module's own.
fn own<T: DeserializeOwned>(section: Option<Section>, name: &str, version: u32) -> Result<T, SnapshotError> {
    let section = section.filter(|section| section.kind == name);
    let section = section.ok_or_else(|| invalid(format!("its section \"{name}\" is not there")))?;
    if section.version != version {
        let found = section.version;
        return Err(invalid(format!(
            "its section \"{name}\" has version {found}, and this mvm knows {version}"
        )));
    }
    match postcard::take_from_bytes(&section.bytes) {
        Ok((content, [])) => Ok(content),
        Ok(_) => Err(invalid(format!("its section \"{name}\" is longer than it says"))),
        Err(error) => Err(invalid(format!("its section \"{name}\" can't be read: {error}"))),
    }
}

/// What is still to be read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], SnapshotError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(|| invalid("it ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u32, SnapshotError> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or_else(|| invalid("it ends too early"))?;
        self.0 = rest;
        Ok(u32::from_le_bytes(*bytes))
    }

    /// A number that is no greater than `most`.
    fn bounded(&mut self, most: usize, what: &str) -> Result<usize, SnapshotError> {
        let number = self.number()?;
        let found = usize::try_from(number).ok().filter(|number| *number <= most);
        found.ok_or_else(|| invalid(format!("{number} {what} are more than {most}")))
    }

    fn section(&mut self) -> Result<Section, SnapshotError> {
        let name = self.bounded(MAX_NAME, "bytes of a name")?;
        let kind = String::from_utf8(self.take(name)?.to_vec()).map_err(|_| invalid("a name is not text"))?;
        let length = self.bounded(Section::MAX_BYTES, "bytes of a section")?;
        let bytes = self.take(length)?.to_vec();
        Ok(Section { kind, version: self.number()?, bytes })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::arch::current::state::VmState;

    fn empty() -> SavedVm {
        let chips = [0_u8; 4096];
        let mut state = Vec::new();
        // No vCPUs, then as many bytes as the controllers and the clock have.
        state.push(0);
        state.extend(chips);
        let machine: VmState = postcard::take_from_bytes(&state).unwrap().0;
        let device = Section { kind: "a device".into(), version: 3, bytes: b"{}".to_vec() };
        SavedVm { machine, devices: vec![device], regions: vec![(0, 1 << 20), (1 << 32, 4096)] }
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = encode(&empty()).unwrap();
        let read = decode(&bytes).unwrap();
        assert_eq!((read.devices, read.regions), (empty().devices, empty().regions));
        assert_eq!(empty().memory(), (1 << 20) + 4096);
    }

    #[test]
    fn what_is_not_whole_is_refused_with_the_reason() {
        let bytes = encode(&empty()).unwrap();
        for (what, altered) in [
            ("does not begin", [b"x", &bytes[1..]].concat()),
            ("does not begin", Vec::new()),
            ("ends too early", bytes[..bytes.len() - 1].to_vec()),
            ("follows its end", [&bytes[..], b"x"].concat()),
            ("version 2", [&bytes[..8], &2_u32.to_le_bytes(), &bytes[12..]].concat()),
            ("no version 0", [&bytes[..8], &0_u32.to_le_bytes(), &bytes[12..]].concat()),
            ("65 sections", [&bytes[..12], &65_u32.to_le_bytes(), &bytes[16..]].concat()),
            ("section \"memory\"", [&bytes[..12], &0_u32.to_le_bytes()].concat()),
        ] {
            let error = decode(&altered).unwrap_err().to_string();
            assert!(error.contains(what), "{what}: {error}");
        }
    }

    proptest! {
        #[test]
        fn altered_bytes_are_read_or_refused(
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = encode(&empty()).unwrap();
            for (place, byte) in &changes {
                let place = place.index(bytes.len());
                bytes[place] = *byte;
            }
            let _ = decode(&bytes);
            bytes.truncate(cut.index(bytes.len()));
            prop_assert!(decode(&bytes).is_err());
        }
    }
}
