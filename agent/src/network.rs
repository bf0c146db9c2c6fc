//! The VM's network device, by the ioctls of netdevice(7).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};

use agent_protocol::Network;
use rustix::net::{AddressFamily, SocketType, socket};

use crate::error::{During, Result, failure};

/// `AF_INET` as an address has it.
const FAMILY: libc::sa_family_t = 2;
/// `IFF_UP` of netdevice(7).
const UP: libc::c_short = 1;
/// The route leads through a router, and is used (`RTF_UP`, `RTF_GATEWAY` of linux/route.h).
const THROUGH_ROUTER: libc::c_ushort = 1 | 2;

/// Sets the loopback interface up.
pub fn set_loopback_up() -> Result<()> {
    let socket = open()?;
    let mut request = request("lo")?;
    request.ifr_ifru.ifru_flags = UP;
    set(&socket, libc::SIOCSIFFLAGS, &mut request).during("set up the loopback interface")
}

/// Gives the device its address and route, and sets it up.
pub fn set_up(network: &Network) -> Result<()> {
    let name = &network.interface;
    let socket = open()?;
    let mut request = request(name)?;
    let mask = u32::MAX.checked_shl(32 - u32::from(network.prefix.min(32))).unwrap_or(0);
    request.ifr_ifru.ifru_addr = address(network.address);
    set(&socket, libc::SIOCSIFADDR, &mut request).during(format!("give {name} its address"))?;
    request.ifr_ifru.ifru_netmask = address(mask.to_be_bytes());
    set(&socket, libc::SIOCSIFNETMASK, &mut request).during(format!("give {name} its network"))?;
    request.ifr_ifru.ifru_flags = UP;
    set(&socket, libc::SIOCSIFFLAGS, &mut request).during(format!("set {name} up"))?;
    if network.router == [0; 4] {
        return Ok(());
    }
    // SAFETY: all zeros is a valid route, whose fields are integers, addresses and a pointer that may be null.
    let mut route: libc::rtentry = unsafe { MaybeUninit::zeroed().assume_init() };
    route.rt_dst = address([0; 4]);
    route.rt_genmask = address([0; 4]);
    route.rt_gateway = address(network.router);
    route.rt_flags = THROUGH_ROUTER;
    // SAFETY: the kernel reads the route, which lives until the call returns.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT, &raw const route) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()).during("add the route to the router"),
    }
}

fn open() -> Result<OwnedFd> {
    socket(AddressFamily::INET, SocketType::DGRAM, None).during("open a socket")
}

fn request(name: &str) -> Result<libc::ifreq> {
    // SAFETY: all zeros is a valid request, whose fields are integers and arrays of them.
    let mut request: libc::ifreq = unsafe { MaybeUninit::zeroed().assume_init() };
    if name.len() >= request.ifr_name.len() {
        return Err(failure(format!("{name} is too long for an interface's name")));
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte.cast_signed();
    }
    Ok(request)
}

fn address(bytes: [u8; 4]) -> libc::sockaddr {
    // SAFETY: all zeros is a valid address.
    let mut address: libc::sockaddr = unsafe { MaybeUninit::zeroed().assume_init() };
    address.sa_family = FAMILY;
    // Behind the port of `struct sockaddr_in`.
    for (place, byte) in address.sa_data.iter_mut().skip(2).zip(bytes) {
        *place = byte.cast_signed();
    }
    address
}

fn set(socket: &OwnedFd, call: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: the kernel reads the request, and may write to it; it lives until the call returns.
    match unsafe { libc::ioctl(socket.as_raw_fd(), call, request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
