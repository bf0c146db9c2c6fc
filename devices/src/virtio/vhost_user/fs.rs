//! The file system device (VIRTIO 1.2, section 5.11): its config space, and how its requests are refused.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use vm_memory::GuestMemoryMmap;

use super::device::Model;
use crate::virtio::queue::Chain;

/// The length of the tag in the config space (5.11.4).
const TAG_LENGTH: usize = 36;
/// The device ID (5.11.1), which virtio-bindings doesn't have.
const DEVICE_TYPE: u32 = 26;
/// The high priority queue and one request queue (5.11.2): Linux uses one, and virtiofsd has one. A request has a
/// descriptor for each page, and Linux makes it as large as the queue allows.
const QUEUE_SIZES: [u16; 2] = [128, 1024];

/// Of printable ASCII, the characters that a tag may not have. A tag that is a path becomes a kernel argument, which
/// the guest's init then takes apart, often with a shell.
const RESERVED: &str = "\"'`\\=,;&|<>()[]{}*?!#$";

/// The name of a shared folder, by which a guest mounts it (5.11.4): 1 to 36 characters of printable ASCII that mean
/// nothing to a kernel's command line or to a shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareTag(String);

/// Why a name can't be the tag of a share.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ShareTagError {
    /// Empty or too long.
    #[error("invalid share tag {0:?}: use 1 to {TAG_LENGTH} characters")]
    Length(String),
    /// A character that a kernel's command line, or a shell in the guest, takes for something else.
    #[error("invalid share tag {0:?}: use letters, digits and / . _ - + : @ % ^ ~ (ASCII only)")]
    Character(String),
}

impl FromStr for ShareTag {
    type Err = ShareTagError;

    fn from_str(text: &str) -> Result<Self, ShareTagError> {
        if text.is_empty() || text.len() > TAG_LENGTH {
            return Err(ShareTagError::Length(text.to_owned()));
        }
        // Linux takes the byte 0xA0 for a space, which is the second one of `à` in UTF-8.
        if text.chars().all(|c| c.is_ascii_graphic() && !RESERVED.contains(c)) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ShareTagError::Character(text.to_owned()))
        }
    }
}

impl ShareTag {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The config space (5.11.4): the tag, padded with zeros, and the count of request queues.
    fn config_space(&self) -> Vec<u8> {
        let mut space = self.0.as_bytes().to_vec();
        space.resize(TAG_LENGTH, 0);
        space.extend(1_u32.to_le_bytes());
        space
    }
}

/// The model of a device with the tag `tag`.
pub(super) fn model(tag: &ShareTag) -> Model {
    Model {
        device_type: DEVICE_TYPE,
        queue_sizes: &QUEUE_SIZES,
        // Not the notification queue (5.11.3), the only one there is.
        features: 0,
        config: tag.config_space(),
        name: format!("share {tag}"),
        refuse,
    }
}

/// The length of `struct fuse_out_header`.
const OUT_HEADER: u32 = 16;

/// Answers a FUSE request with ENOTCONN, as a file system does whose process is gone. Some requests (FORGET) have no
/// answer.
fn refuse(chain: &mut Chain, memory: &GuestMemoryMmap) -> u32 {
    // In both headers, the request's number is at byte 8.
    let (mut before, mut number) = ([0; 8], [0; 8]);
    if !chain.readable.take(memory, &mut before) || !chain.readable.take(memory, &mut number) {
        return 0;
    }
    if chain.writable.len() < OUT_HEADER.into() {
        return 0;
    }
    let (length, error) = (OUT_HEADER.to_le_bytes(), (-libc::ENOTCONN).to_le_bytes());
    let written: usize =
        [&length[..], &error, &number].map(|part| chain.writable.put(memory, part)).iter().sum();
    u32::try_from(written).unwrap_or(0)
}

impl fmt::Display for ShareTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_what_a_guest_can_name() {
        for good in ["x", "/work", "a.b-c_d+e:@%^~", &"t".repeat(36)] {
            let tag: ShareTag = good.parse().unwrap();
            assert_eq!(tag.as_str(), good);
        }
        for bad in ["", &"t".repeat(37), &"é".repeat(19)] {
            assert_eq!(bad.parse::<ShareTag>(), Err(ShareTagError::Length(bad.into())));
        }
        for bad in [
            "a b", "a\n", "a\"", "'", "a,b", "\0", "à", "/wörk", "a=b", "\u{a0}", "\u{7f}", "*", "$(x)",
            "a\\b",
        ] {
            assert_eq!(bad.parse::<ShareTag>(), Err(ShareTagError::Character(bad.into())));
        }
        // The message lists all that is left.
        let message = ShareTagError::Character(String::new()).to_string();
        let named = |c: &char| message.split(' ').any(|word| word == c.to_string());
        let is_tag = |c: &char| c.to_string().parse::<ShareTag>().is_ok();
        assert!((0..=0xff).map(char::from).filter(is_tag).all(|c| c.is_ascii_alphanumeric() || named(&c)));
    }

    #[test]
    fn the_config_space_has_the_tag_and_one_request_queue() {
        let space = "/work".parse::<ShareTag>().unwrap().config_space();
        assert_eq!(space.len(), 40);
        assert!(space.starts_with(b"/work\0"));
        assert_eq!(space[36..], [1, 0, 0, 0]);
        assert_eq!("t".repeat(36).parse::<ShareTag>().unwrap().config_space()[..36], [b't'; 36]);
    }
}
