//! The agent: PID 1 of a container's VM. It runs containers as the host says over vsock (see `agent_protocol`).
//!
//! It is one thread, which waits for all its descriptors at once (`server`). A container's first process is made by
//! `container`, and what that does before it becomes the user's command is in `child`.

mod buffer;
mod cgroup;
mod child;
mod container;
mod devices;
mod error;
mod mounts;
mod network;
mod pty;
mod server;
mod streams;
mod system;
mod user;
mod vsock;

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("agent: it is the init of a container's VM and starts nowhere else");
        return ExitCode::from(2);
    }
    let failure = match system::prepare().and_then(|()| server::Server::new()) {
        Ok(server) => server.serve(),
        Err(failure) => failure,
    };
    // The host reads it in the console's log.
    eprintln!("agent: {}", failure.message);
    system::power_off()
}
