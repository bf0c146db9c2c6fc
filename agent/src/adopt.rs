//! The container of a VM that is a copy of another one: it becomes a container of its own.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;

use agent_protocol::Adoption;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::process::Pid;

use crate::container::Home;
use crate::error::{During, Result};
use crate::pod::name_host;

/// Gives the container whose first process is `pid` the names that `adoption` has.
pub fn rename(home: &Home, pid: Pid, adoption: &Adoption) -> Result<()> {
    name_host(home.first(), &adoption.hostname)?;
    let root =
        File::open(format!("/proc/{}/root", pid.as_raw_nonzero())).during("open the container's root")?;
    for file in &adoption.files {
        // The container may have put something else there, which stays as it is.
        if let Err(failure) = overwrite(&root, file) {
            eprintln!("agent: {}", failure.message);
        }
    }
    Ok(())
}

/// Writes `file` in place of what it has, if it is a file in `root`.
fn overwrite(root: impl AsFd, file: &agent_protocol::File) -> Result<()> {
    let doing = || format!("write {}", file.path);
    // A pipe does not block, and no link leads out of the root.
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    let opened = openat2(root, &file.path, flags, Mode::empty(), resolve).during(doing())?;
    let mut target = File::from(opened);
    if target.metadata().during(doing())?.is_file() {
        target.set_len(0).during(doing())?;
        target.write_all(&file.content).during(doing())?;
    }
    Ok(())
}
