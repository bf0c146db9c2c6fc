//! Network interfaces of the host, by their names.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixDatagram;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The most bytes of a name; the kernel's IFNAMSIZ counts a zero behind it.
const MAX_NAME: usize = libc::IFNAMSIZ - 1;

/// The name of a network interface, such as the kernel accepts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InterfaceName(String);

/// Why a name can't be that of an interface.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum InterfaceNameError {
    /// Empty or too long.
    #[error("invalid interface name {0:?}: use 1 to {MAX_NAME} bytes")]
    Length(String),
    /// A name that the kernel refuses or takes for a pattern.
    #[error("invalid interface name {0:?}: leave out spaces, control characters, '/', ':' and '%'")]
    Bytes(String),
}

impl InterfaceName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for InterfaceName {
    type Error = InterfaceNameError;

    fn try_from(text: String) -> Result<Self, InterfaceNameError> {
        text.parse()
    }
}

impl From<InterfaceName> for String {
    fn from(name: InterfaceName) -> Self {
        name.0
    }
}

impl FromStr for InterfaceName {
    type Err = InterfaceNameError;

    fn from_str(text: &str) -> Result<Self, InterfaceNameError> {
        if text.is_empty() || text.len() > MAX_NAME {
            return Err(InterfaceNameError::Length(text.to_owned()));
        }
        // The kernel takes the byte 0xA0 for a space, and a % for a pattern from which it makes a name.
        let bad = |byte: u8| matches!(byte, b'/' | b':' | b'%' | b' ' | 0xa0) || byte.is_ascii_control();
        if text == "." || text == ".." || text.bytes().any(bad) {
            return Err(InterfaceNameError::Bytes(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// With some C libraries, libc has these as other types than those of ioctls.
const SIOCGIFFLAGS: libc::Ioctl = libc::SIOCGIFFLAGS as libc::Ioctl;
const SIOCGIFINDEX: libc::Ioctl = libc::SIOCGIFINDEX as libc::Ioctl;
const SIOCGIFMTU: libc::Ioctl = libc::SIOCGIFMTU as libc::Ioctl;
const SIOCSIFFLAGS: libc::Ioctl = libc::SIOCSIFFLAGS as libc::Ioctl;
const SIOCSIFMTU: libc::Ioctl = libc::SIOCSIFMTU as libc::Ioctl;
/// Makes an interface a port of a bridge (linux/sockios.h).
const SIOCBRADDIF: libc::Ioctl = 0x89a2;

/// `struct ifreq`: a name and a union.
#[repr(C)]
pub(super) struct Request {
    name: [u8; libc::IFNAMSIZ],
    value: [u8; 24],
}

const _: () = assert!(size_of::<Request>() == size_of::<libc::ifreq>());

impl Request {
    pub(super) fn new(name: &InterfaceName) -> Self {
        Self::unnamed(name.as_str())
    }

    /// A request for an interface whose name the kernel makes of this pattern.
    pub(super) fn unnamed(pattern: &str) -> Self {
        let mut request = Self { name: [0; libc::IFNAMSIZ], value: [0; 24] };
        // The last byte stays zero.
        for (place, byte) in request.name.iter_mut().zip(pattern.bytes().take(MAX_NAME)) {
            *place = byte;
        }
        request
    }

    /// Sets the first bytes of the union.
    pub(super) fn set(&mut self, value: &[u8]) {
        for (place, byte) in self.value.iter_mut().zip(value) {
            *place = *byte;
        }
    }

    /// The integer of 32 bits in the union.
    fn number(&self) -> i32 {
        let [a, b, c, d, ..] = self.value;
        i32::from_ne_bytes([a, b, c, d])
    }

    /// The flags of the interface in the union.
    fn flags(&self) -> i16 {
        let [a, b, ..] = self.value;
        i16::from_ne_bytes([a, b])
    }

    /// The interface's name.
    pub(super) fn name(&self) -> String {
        String::from_utf8_lossy(&self.name).trim_end_matches('\0').to_owned()
    }

    /// Calls the ioctl `number` on `fd`, which has to be one with a `struct ifreq`.
    pub(super) fn call(&mut self, fd: impl AsFd, number: libc::Ioctl) -> io::Result<()> {
        // SAFETY: the ioctl reads and writes a `struct ifreq`, and this is one.
        let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), number, std::ptr::from_mut(self)) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// An interface of the host that exists.
pub struct Interface {
    name: InterfaceName,
    index: i32,
    /// Any socket: ioctls about interfaces need one.
    socket: UnixDatagram,
}

impl Interface {
    /// The interface called `name`; `None` if there is none.
    ///
    /// # Errors
    ///
    /// Those of socket(2) and of the ioctl.
    pub fn find(name: &InterfaceName) -> io::Result<Option<Self>> {
        let socket = UnixDatagram::unbound()?;
        let mut request = Request::new(name);
        match request.call(&socket, SIOCGIFINDEX) {
            Ok(()) => Ok(Some(Self { name: name.clone(), index: request.number(), socket })),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn call(&self, number: libc::Ioctl, value: &[u8]) -> io::Result<Request> {
        let mut request = Request::new(&self.name);
        request.set(value);
        request.call(&self.socket, number)?;
        Ok(request)
    }

    /// The MTU in bytes.
    ///
    /// # Errors
    ///
    /// The interface is gone.
    pub fn mtu(&self) -> io::Result<u32> {
        Ok(u32::try_from(self.call(SIOCGIFMTU, &[])?.number()).unwrap_or(0))
    }

    /// Sets the MTU.
    ///
    /// # Errors
    ///
    /// The interface does not allow it, or the process has no permission.
    pub fn set_mtu(&self, mtu: u32) -> io::Result<()> {
        self.call(SIOCSIFMTU, &mtu.to_ne_bytes()).map(drop)
    }

    fn flags(&self) -> io::Result<i16> {
        Ok(self.call(SIOCGIFFLAGS, &[])?.flags())
    }

    /// Whether it is up.
    ///
    /// # Errors
    ///
    /// The interface is gone.
    pub fn is_up(&self) -> io::Result<bool> {
        Ok(i32::from(self.flags()?) & libc::IFF_UP != 0)
    }

    /// Brings it up.
    ///
    /// # Errors
    ///
    /// The process has no permission.
    pub fn bring_up(&self) -> io::Result<()> {
        let up = i16::try_from(libc::IFF_UP).unwrap_or(1);
        self.call(SIOCSIFFLAGS, &(self.flags()? | up).to_ne_bytes()).map(drop)
    }

    /// Makes `port` a port of this bridge.
    ///
    /// # Errors
    ///
    /// EOPNOTSUPP if this is not a bridge; the process has no permission; `port` is a port of another bridge.
    pub fn add_port(&self, port: &Self) -> io::Result<()> {
        self.call(SIOCBRADDIF, &port.index.to_ne_bytes()).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert_eq!("tap0".parse::<InterfaceName>().unwrap().as_str(), "tap0");
        assert!(
            "a-name-of-fiftee"
                .parse::<InterfaceName>()
                .is_err_and(|e| matches!(e, InterfaceNameError::Length(_)))
        );
        assert!("a-name-of-15-by".parse::<InterfaceName>().is_ok());
        for text in ["a/b", "a b", "a:1", "tap%d", ".", "..", "a\0", "a\n", "\u{1b}[m", "à"] {
            assert_eq!(text.parse::<InterfaceName>(), Err(InterfaceNameError::Bytes(text.into())));
        }
    }

    #[test]
    fn the_loopback_interface_is_found_and_another_is_not() {
        let find = |name: &str| Interface::find(&name.parse().unwrap()).unwrap();
        let lo = find("lo").unwrap();
        assert!(lo.mtu().unwrap() >= 1500);
        assert!(find("mvm-no-such").is_none());
    }
}
