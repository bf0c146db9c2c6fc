//! passt: a network for a guest by the host's sockets, without root. It is a process that exchanges Ethernet frames
//! with mvm on a socket, and is the guest's router, DHCP server and resolver.

mod command;
mod ports;

use std::fs;
use std::io::{self, PipeReader, Read};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use thiserror::Error;

use self::ports::PortError;
use crate::config::{PublishConfig, UserAddresses};
use crate::helper::{Helper, Package, Program, becomes_readable};

/// The program.
pub static PASST: Program = Program {
    name: "passt",
    variable: "MVM_PASST",
    places: &[],
    package: Package {
        since: &[("debian", (12, 0)), ("ubuntu", (23, 4))],
        otherwise: "use --net tap=NAME or --net bridge=NAME instead, or build passt from its source",
        build: None,
    },
    message,
};

/// The largest MTU of passt: the longest IP packet, rounded down to a multiple of 4 bytes behind an Ethernet header.
pub const MAX_MTU: u16 = 65520;
/// How long it may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a user network can't be started.
#[derive(Debug, Error)]
pub enum PasstError {
    /// No passt on this host.
    #[error("passt is not installed, which user networks and published ports need (--network user, --net user, -p): {}", PASST.advice())]
    NoProgram,
    /// A port to publish.
    #[error(transparent)]
    Port(#[from] PortError),
    /// passt can't be started.
    #[error("cannot start {}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// The host's error.
        #[source]
        source: io::Error,
    },
    /// passt ended before it was ready.
    #[error("passt failed to start: {message}{hint}")]
    Ended {
        /// What it said.
        message: String,
        /// What to do about it, if that is known.
        hint: &'static str,
    },
    /// passt runs, but doesn't say that it is ready.
    #[error(
        "passt did not start within {} seconds: check that {} is passt",
        START_TIMEOUT.as_secs(),
        program.display()
    )]
    Silent {
        /// The program.
        program: PathBuf,
    },
}

/// Whether a user network of [`UserAddresses`] can work here: passt is installed, and the host has a route to where it
/// leads.
pub fn is_usable() -> bool {
    PASST.find().is_some()
        && fs::read_to_string("/proc/net/route").is_ok_and(|routes| has_default_route(&routes))
}

/// Whether one of the routes, lines of /proc/net/route (proc(5)), is to all addresses and in use.
fn has_default_route(routes: &str) -> bool {
    routes.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_up = fields
            .get(3)
            .and_then(|flags| u32::from_str_radix(flags, 16).ok())
            .is_some_and(|flags| flags & 1 != 0);
        is_up && fields.get(1) == Some(&"00000000") && fields.get(7) == Some(&"00000000")
    })
}

impl PasstError {
    /// Whether the cause is the host, not the configuration.
    pub fn is_the_hosts(&self) -> bool {
        match self {
            Self::NoProgram | Self::Start { .. } | Self::Ended { .. } | Self::Silent { .. } => true,
            Self::Port(error) => error.is_the_hosts(),
        }
    }
}

/// What passt is started with.
#[derive(Clone, Copy, Debug)]
pub struct PasstSettings<'a> {
    /// The guest's MTU, up to [`MAX_MTU`].
    pub mtu: u16,
    /// Whether connections to the router's address go to the host's loopback.
    pub reaches_host: bool,
    /// The network's addresses; those of the host if `None`.
    pub addresses: Option<UserAddresses>,
    /// Ports of the guest that are published on the host.
    pub published: &'a [PublishConfig],
}

/// A passt that is being started.
pub struct Passt {
    helper: Helper,
    program: PathBuf,
    /// passt writes its process ID to it when it is ready.
    ready: PipeReader,
}

impl Passt {
    /// Starts passt, and returns mvm's end of its socket. passt starts up while the VM is built.
    ///
    /// # Errors
    ///
    /// [`PasstError`]: passt is missing, or a port can't be published.
    pub fn start(settings: PasstSettings<'_>) -> Result<(Self, UnixStream), PasstError> {
        settings.published.iter().try_for_each(ports::probe)?;
        let program = PASST.find().ok_or(PasstError::NoProgram)?;
        let start = || {
            let (socket, theirs) = UnixStream::pair()?;
            let (ready, writer) = io::pipe()?;
            let command = command::command(&program, settings, theirs.into(), writer.into())?;
            Ok((Helper::start(&PASST, "network".to_owned(), command)?, ready, socket))
        };
        let (helper, ready, socket) =
            start().map_err(|source| PasstError::Start { program: program.clone(), source })?;
        Ok((Self { helper, program, ready }, socket))
    }

    /// The number of its process.
    pub fn pid(&self) -> u32 {
        self.helper.pid()
    }

    /// Waits until passt is ready. The process is for the event loop, which logs its messages.
    ///
    /// # Errors
    ///
    /// [`PasstError`] says why it is not, with passt's last messages.
    pub fn into_ready(mut self) -> Result<Helper, PasstError> {
        if !becomes_readable(&self.ready, Instant::now() + START_TIMEOUT) {
            return Err(PasstError::Silent { program: self.program });
        }
        if matches!(self.ready.read(&mut [0; 32]), Ok(1..)) {
            // Remarks about the host, such as that it has no IPv6, would be repeated for each VM.
            self.helper.forget_messages();
            return Ok(self.helper);
        }
        let Some(message) = self.helper.into_last_words() else {
            return Err(PasstError::Silent { program: self.program });
        };
        Err(PasstError::Ended { hint: hint(&message), message })
    }
}

/// What to do about passt's last messages.
fn hint(message: &str) -> &'static str {
    let message = message.to_ascii_lowercase();
    if message.contains("external interface") || message.contains("routable interface") {
        " (it needs a host with a network: see `ip route show default`)"
    } else if message.contains("namespace") || message.contains("sandbox") {
        " (it needs user namespaces: see `sysctl user.max_user_namespaces`)"
    } else {
        ""
    }
}

/// Leaves out what passt says at every start where there is no syslog, or as root.
fn message(line: &str) -> &str {
    let line = line.trim();
    let is_noise = line.starts_with("Failed to send ") && line.ends_with(" to syslog")
        || line.starts_with("Don't run as root");
    if is_noise { "" } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_route_is_found() {
        let heading = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
        let route = |destination: &str, flags: &str, mask: &str| {
            format!("{heading}eth0\t{destination}\t0101A8C0\t{flags}\t0\t0\t0\t{mask}\t0\t0\t0\n")
        };
        assert!(has_default_route(&route("00000000", "0003", "00000000")));
        assert!(!has_default_route(&route("00000000", "0002", "00000000")));
        assert!(!has_default_route(&route("0001A8C0", "0001", "00FFFFFF")));
        assert!(!has_default_route(heading) && !has_default_route(""));
    }

    #[test]
    fn messages_of_every_start_are_left_out() {
        assert_eq!(message("Failed to send 47 bytes to syslog"), "");
        assert_eq!(message("Don't run as root. Changing to nobody..."), "");
        assert_eq!(message(" External interface not usable"), "External interface not usable");
        assert!(hint("External interface not usable").contains("ip route"));
        assert!(hint("Failed to sandbox process, exiting").contains("user namespaces"));
        assert_eq!(hint("Invalid MTU"), "");
    }
}
