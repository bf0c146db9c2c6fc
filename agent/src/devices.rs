//! A container's /dev.

use std::os::fd::AsFd;

use agent_protocol::Container;
use rustix::fs::OFlags;

use crate::error::{During, Result};
use crate::mounts::{Kind, Root};

/// The devices that every container has (OCI runtime specification, "Default Devices").
const NODES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Links, and where they lead.
const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
];

/// Fills the empty /dev of `root`. Each device is a mount of its own, so that no other can be used.
pub fn add(root: &Root, container: &Container) -> Result<()> {
    let directory = root.open("/dev", OFlags::PATH).during("open /dev")?;
    for (name, target) in LINKS {
        rustix::fs::symlinkat(target, directory.as_fd(), name).during(format!("make /dev/{name}"))?;
    }
    if container.all_devices {
        let entries = std::fs::read_dir("/dev").during("read /dev")?;
        // Links have names of devices, and the console is the terminal's (see `bind_console`).
        let is_taken = |name: &str| name == "console" || LINKS.iter().any(|(link, _)| *link == name);
        for entry in entries.flatten() {
            if let Some(name) = entry.file_name().to_str()
                && !is_taken(name)
                && entry.file_type().is_ok_and(|kind| !kind.is_dir() && !kind.is_symlink())
            {
                root.bind(&format!("/dev/{name}"), &format!("/dev/{name}"), Kind::File)?;
            }
        }
        return Ok(());
    }
    for name in NODES {
        root.bind(&format!("/dev/{name}"), &format!("/dev/{name}"), Kind::File)?;
    }
    Ok(())
}
