//! The agent as a service of a VM's guest: `mvm-agent --service`.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::ExitCode;

use agent_protocol::PORT;

use crate::server::Server;
use crate::{system, vsock};

/// What the program is, for who runs it by itself.
const USAGE: &str = "mvm-agent: usage: mvm-agent --service: as a service of a VM that `mvm boot --agent` runs, it runs the commands of \
                     `mvm exec` and copies the files of `mvm cp`. As PID 1 it is the init of a container's VM.";

/// Does what these words ask for.
pub fn run(words: &[String]) -> ExitCode {
    match words {
        [word] if word == "--service" => serve(),
        [word] if word == "--version" => {
            println!("mvm-agent {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        [word] if word == "--help" => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

/// Serves the host until it cannot.
fn serve() -> ExitCode {
    let listener = match vsock::listen(PORT) {
        Ok(listener) => listener,
        Err(error) => {
            let (line, code) = refusal(&error);
            eprintln!("mvm-agent: {line}");
            if code == ExitCode::SUCCESS {
                tell_manager();
            }
            return code;
        }
    };
    let failure = match system::hide().and_then(|()| Server::of_guest(listener)) {
        Ok(server) => {
            tell_manager();
            server.serve()
        }
        Err(failure) => failure,
    };
    eprintln!("mvm-agent: {}", failure.message);
    ExitCode::FAILURE
}

/// Why it can't listen, and the exit code: 0 where another start would find the same.
fn refusal(error: &io::Error) -> (String, ExitCode) {
    match error.raw_os_error() {
        Some(libc::EAFNOSUPPORT) => (
            "this kernel has no vsock (CONFIG_VIRTIO_VSOCKETS): there is nothing to do".into(),
            ExitCode::SUCCESS,
        ),
        Some(libc::EADDRINUSE) => (
            format!("another program listens on vsock port {PORT}, as an agent does: it is left to that"),
            ExitCode::SUCCESS,
        ),
        Some(libc::EACCES | libc::EPERM) => {
            (format!("cannot listen on vsock port {PORT}: run it as root"), ExitCode::from(2))
        }
        _ => (format!("cannot listen on vsock port {PORT}: {error}"), ExitCode::FAILURE),
    }
}

/// Tells the service manager that it listens, where that waits for it (sd_notify(3)).
fn tell_manager() {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    let told = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address));
    if let Err(error) = told {
        eprintln!("mvm-agent: cannot tell the service manager that it is ready: {error}");
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(libc::EAFNOSUPPORT, ExitCode::SUCCESS, "this kernel has no vsock")]
    #[case(libc::EADDRINUSE, ExitCode::SUCCESS, "another program listens on vsock port 1000")]
    #[case(libc::EACCES, ExitCode::from(2), "run it as root")]
    #[case(libc::ENOMEM, ExitCode::FAILURE, "cannot listen on vsock port 1000: ")]
    fn a_port_that_cannot_be_had_gets_a_line(
        #[case] error: i32,
        #[case] expected: ExitCode,
        #[case] says: &str,
    ) {
        let (line, code) = refusal(&io::Error::from_raw_os_error(error));
        assert!(line.contains(says) && !line.contains('\n'), "{line}");
        assert_eq!(format!("{code:?}"), format!("{expected:?}"));
    }
}
