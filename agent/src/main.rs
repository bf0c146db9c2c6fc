//! The agent: PID 1 of a container's VM, where it runs containers as the host says over vsock (see `agent_protocol`);
//! or a service of a VM's guest (`service`), where it runs commands in that; or what starts a VM whose root is an image
//! (`image`).
//!
//! It is one thread, which waits for all its descriptors at once (`server`). Processes of containers are made by
//! `container`, what they do before they become the user's command is in `child`, and what the agent knows of one while
//! it runs is in `process`. Files pass through processes of their own (`copies`).

mod adopt;
mod awake;
mod buffer;
mod cgroup;
mod child;
mod container;
mod copies;
mod copy;
mod devices;
mod disk;
mod error;
mod flow;
mod guest;
mod image;
mod init;
mod mounts;
mod network;
mod pod;
mod process;
mod processes;
mod pty;
mod server;
mod service;
mod sockets;
mod streams;
mod system;
mod user;
mod volumes;
mod vsock;

use std::convert::Infallible;
use std::process::ExitCode;

/// Does what PID 1 has to do, until it cannot.
fn run() -> error::Result<Infallible> {
    system::mount_basics()?;
    if let Some(wanted) = image::Wanted::of(&system::kernel_arguments()?) {
        image::run(wanted);
    }
    system::prepare()?;
    Err(server::Server::new()?.serve())
}

fn main() -> ExitCode {
    if std::process::id() != 1 {
        let words: Vec<String> =
            std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
        return service::run(&words);
    }
    system::mark_start();
    let Err(failure) = run();
    // The host reads it in the console's log.
    eprintln!("agent: {}", failure.message);
    system::power_off()
}
