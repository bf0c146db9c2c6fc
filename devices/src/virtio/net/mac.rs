//! MAC addresses.

use std::fmt;
use std::io;
use std::str::FromStr;

use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Bit of the first byte: the address is a multicast one.
const GROUP: u8 = 1;
/// Bit of the first byte: the address is locally administered.
const LOCAL: u8 = 2;

/// The MAC address of a network interface: neither zero nor multicast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "[u8; 6]", into = "[u8; 6]")]
pub struct MacAddress([u8; 6]);

/// Why a text is not a MAC address of an interface.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum MacAddressError {
    /// Not six bytes.
    #[error("invalid MAC address {0:?}: use six bytes, as in 02:00:00:00:00:01")]
    Form(String),
    /// A multicast address or zero.
    #[error(
        "invalid MAC address {0}: it is zero or multicast (the first byte of an interface's address is even)"
    )]
    NotUnicast(String),
}

impl MacAddress {
    /// An address of these bytes; `None` if no interface can have it.
    pub fn new(bytes: [u8; 6]) -> Option<Self> {
        let [first, ..] = bytes;
        (first & GROUP == 0 && bytes != [0; 6]).then_some(Self(bytes))
    }

    /// A random, locally administered address.
    ///
    /// # Errors
    ///
    /// The host has no random bytes.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; 6];
        // So few bytes are given whole.
        getrandom(&mut bytes, GetRandomFlags::empty())?;
        let [first, ..] = &mut bytes;
        *first = *first & !GROUP | LOCAL;
        Ok(Self(bytes))
    }

    /// The bytes, as they go over the wire.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl TryFrom<[u8; 6]> for MacAddress {
    type Error = MacAddressError;

    fn try_from(bytes: [u8; 6]) -> Result<Self, MacAddressError> {
        Self::new(bytes).ok_or_else(|| MacAddressError::NotUnicast(Self(bytes).to_string()))
    }
}

impl From<MacAddress> for [u8; 6] {
    fn from(address: MacAddress) -> Self {
        address.0
    }
}

impl FromStr for MacAddress {
    type Err = MacAddressError;

    /// Reads `02:00:00:00:00:01`.
    fn from_str(text: &str) -> Result<Self, MacAddressError> {
        let form = || MacAddressError::Form(text.to_owned());
        let mut bytes = [0; 6];
        let mut words = text.split(':');
        for byte in &mut bytes {
            let word = words.next().filter(|word| word.len() == 2).ok_or_else(form)?;
            // `from_str_radix` would take a sign.
            if !word.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(form());
            }
            *byte = u8::from_str_radix(word, 16).map_err(|_| form())?;
        }
        if words.next().is_some() {
            return Err(form());
        }
        Self::new(bytes).ok_or_else(|| MacAddressError::NotUnicast(text.to_owned()))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_are_read() {
        assert_eq!("02:AB:00:00:00:1f".parse(), Ok(MacAddress([2, 0xab, 0, 0, 0, 0x1f])));
        for text in
            ["", "02", "02:00:00:00:00", "02:00:00:00:00:00:00", "02:00:00:00:00:0g", "+2:00:00:00:00:01"]
        {
            assert_eq!(text.parse::<MacAddress>(), Err(MacAddressError::Form(text.into())));
        }
        for text in ["01:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"] {
            assert_eq!(text.parse::<MacAddress>(), Err(MacAddressError::NotUnicast(text.into())));
        }
    }

    #[test]
    fn made_addresses_are_local_and_differ() {
        let (one, other) = (MacAddress::random().unwrap(), MacAddress::random().unwrap());
        assert_ne!(one, other);
        assert_eq!(one.bytes()[0] & (GROUP | LOCAL), LOCAL);
    }

    proptest! {
        #[test]
        fn an_address_reads_back_as_written(bytes: [u8; 6]) {
            if let Some(address) = MacAddress::new(bytes) {
                prop_assert_eq!(address.to_string().parse(), Ok(address));
            }
        }
    }
}
