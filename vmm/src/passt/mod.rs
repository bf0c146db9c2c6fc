//! passt: the host's sockets as a network for a guest, without root. It is a process of its own, which takes and gives
//! Ethernet frames by a socket, and is the guest's router, DHCP server and resolver.

mod command;
mod ports;

use std::io::{self, PipeReader, Read};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use thiserror::Error;

use self::ports::PortError;
use crate::config::PublishConfig;
use crate::helper::{Helper, Program, becomes_readable};

/// The program.
pub static PASST: Program = Program { name: "passt", variable: "MVM_PASST", places: &[], message };

/// The largest MTU that passt knows of: the most that an IP packet has, in whole words.
pub const MAX_MTU: u16 = 65520;
/// How long it may take to get ready.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why there is no user network.
#[derive(Debug, Error)]
pub enum PasstError {
    /// No passt on this host.
    #[error(
        "no passt is installed, which --net user needs: install the package passt (`apt install passt`), or name the \
         program in {variable}",
        variable = PASST.variable
    )]
    NoProgram,
    /// A port to publish.
    #[error(transparent)]
    Port(#[from] PortError),
    /// passt can't be started.
    #[error("cannot start {}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// The host's refusal.
        #[source]
        source: io::Error,
    },
    /// passt ended before it was ready.
    #[error("passt makes no network: {message}{hint}")]
    Ended {
        /// What it said.
        message: String,
        /// How to mend it, where that is known.
        hint: &'static str,
    },
    /// passt lives, but says nothing.
    #[error("passt is not ready after {} seconds: is {} passt?", PATIENCE.as_secs(), program.display())]
    Silent {
        /// The program.
        program: PathBuf,
    },
}

impl PasstError {
    /// Whether the host is at fault, and not what it was asked for.
    pub fn is_the_hosts(&self) -> bool {
        match self {
            Self::NoProgram | Self::Start { .. } | Self::Ended { .. } | Self::Silent { .. } => true,
            Self::Port(error) => error.is_the_hosts(),
        }
    }
}

/// What a passt is to do.
#[derive(Clone, Copy, Debug)]
pub struct PasstSettings<'a> {
    /// The guest's MTU, up to [`MAX_MTU`].
    pub mtu: u16,
    /// Whether the address of the guest's router leads to what listens on the host's loopback.
    pub reaches_host: bool,
    /// Ports of the host that lead to the guest.
    pub published: &'a [PublishConfig],
}

/// A passt on its way.
pub struct Passt {
    helper: Helper,
    program: PathBuf,
    /// It writes its process ID there when it is ready.
    ready: PipeReader,
}

impl Passt {
    /// Starts it, and gives the other end of its socket. It gets ready while the VM is built.
    ///
    /// # Errors
    ///
    /// [`PasstError`]: there is none, or a port can't be published.
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

    /// Waits until it is ready. The process is for the event loop, which hears what it has to say.
    ///
    /// # Errors
    ///
    /// [`PasstError`] says why it is not, in its own words where it has any.
    pub fn into_ready(mut self) -> Result<Helper, PasstError> {
        if !becomes_readable(&self.ready, Instant::now() + PATIENCE) {
            return Err(PasstError::Silent { program: self.program });
        }
        if matches!(self.ready.read(&mut [0; 32]), Ok(1..)) {
            // What it said by the way, that there is no IPv6 say, is no news for each VM.
            self.helper.forget_messages();
            return Ok(self.helper);
        }
        let Some(message) = self.helper.into_last_words() else {
            return Err(PasstError::Silent { program: self.program });
        };
        Err(PasstError::Ended { hint: hint(&message), message })
    }
}

/// What to do about passt's last words.
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

/// All but what passt says of the system's log, where there is none, and of root, each time.
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
    fn what_passt_says_each_time_is_left_out() {
        assert_eq!(message("Failed to send 47 bytes to syslog"), "");
        assert_eq!(message("Don't run as root. Changing to nobody..."), "");
        assert_eq!(message(" External interface not usable"), "External interface not usable");
        assert!(hint("External interface not usable").contains("ip route"));
        assert!(hint("Failed to sandbox process, exiting").contains("user namespaces"));
        assert_eq!(hint("Invalid MTU"), "");
    }
}
