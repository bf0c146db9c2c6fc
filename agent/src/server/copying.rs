//! Processes that copy files of containers.

use agent_protocol::{CopyWhat, GUEST, MAX_COPIES, Resources};
use rustix::process::Pid;

use super::{Server, unknown};
use crate::cgroup::Cgroup;
use crate::error::{Result, failure};
use crate::guest;
use crate::process::Role;
use crate::streams::ConnectionId;

/// The control group of copies that can't be in their container's.
const APART: &str = "mvm.copies";
/// The memory that they have together, in bytes: they keep little, and what is read of files is given back.
const APART_MEMORY: u64 = 64 << 20;

/// A process that copies files of a container.
pub struct Copying {
    pid: Pid,
    container: String,
    /// The container's processes stand still until it ends.
    pauses: bool,
}

impl Server {
    /// Has a process of its own copy files, which gets the connection.
    pub(super) fn copy(&mut self, id: ConnectionId, container: &str, what: &CopyWhat) -> Result<()> {
        let is_full =
            self.copies.iter().filter(|copying| copying.container == container).count() >= MAX_COPIES;
        if self.is_service && container == GUEST {
            if is_full {
                return Err(failure(format!(
                    "{MAX_COPIES} copies of files are being made, which is the most"
                )));
            }
            let Some(connection) = self.connections.get(&id) else { return Ok(()) };
            let pid = guest::copy(&connection.fd, &connection.answers, what)?;
            self.copies.push(Copying { pid, container: container.to_owned(), pauses: false });
            self.connections.remove(&id);
            return Ok(());
        }
        let first = self.processes.get(container).ok_or_else(|| unknown(container))?;
        let Role::First(home) = &first.role else { return Err(unknown(container)) };
        if !first.is_command() {
            return Err(failure(format!("container {container} is not running")));
        }
        if is_full {
            return Err(failure(format!(
                "{MAX_COPIES} copies of container {container}'s files are being made, which is the most"
            )));
        }
        let Some(connection) = self.connections.get(&id) else { return Ok(()) };
        let pauses = matches!(what, CopyWhat::Layer { pauses: true });
        // A process in the group stands still with the others, and needs room for one more.
        let apart = if pauses || home.is_paused || home.cgroup.is_full() {
            if self.apart.is_none() {
                let resources = Resources { memory: Some(APART_MEMORY), ..Resources::default() };
                self.apart = Some(Cgroup::new(crate::cgroup::TOP, APART, &resources)?);
            }
            self.apart.as_ref()
        } else {
            None
        };
        if pauses {
            home.cgroup.freeze(true)?;
        }
        match home.copy(apart, &connection.fd, &connection.answers, what) {
            Ok(pid) => self.copies.push(Copying { pid, container: container.to_owned(), pauses }),
            Err(failure) => {
                self.thaw(container);
                return Err(failure);
            }
        }
        // It is the process's alone.
        self.connections.remove(&id);
        Ok(())
    }

    /// Whether a copy needs the processes of a container to stand still.
    pub(super) fn is_copied(&self, container: &str) -> bool {
        let mut of = self.copies.iter().filter(|copying| copying.container == container);
        of.any(|copying| copying.pauses)
    }

    /// Has the processes of a container go on, unless another copy or the user needs them to stand still.
    fn thaw(&self, container: &str) {
        if self.is_copied(container) {
            return;
        }
        if let Some(Role::First(home)) = self.processes.get(container).map(|running| &running.role)
            && !home.is_paused
        {
            // It goes on by itself where there is no such group any more.
            let _ = home.cgroup.freeze(false);
        }
    }

    /// Takes the end of a process; whether it was one that copied files.
    pub(super) fn reap_copy(&mut self, pid: Pid) -> bool {
        let Some(place) = self.copies.iter().position(|copying| copying.pid == pid) else { return false };
        let copying = self.copies.swap_remove(place);
        if copying.pauses {
            self.thaw(&copying.container);
        }
        true
    }
}
