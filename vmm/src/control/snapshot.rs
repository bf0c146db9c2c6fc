//! Saving the VM.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

use devices::log::chain;
use instance::api::SnapshotCreate;

use super::response::Response;
use super::router::{Content, Outcome};
use crate::handle::VmHandle;

/// Saves the VM in two files that come with the request: its state, then its memory. It opens none itself: a process
/// that is confined can't.
pub(super) fn create(_vm: &VmHandle, content: Content<'_>) -> Result<Outcome, Response> {
    let SnapshotCreate { snapshot_path, mem_file_path, .. } = super::body::read(content.body)?;
    let two = <[OwnedFd; 2]>::try_from(content.files).ok();
    let Some([state, memory]) = two.filter(|_| snapshot_path.is_none() && mem_file_path.is_none()) else {
        let how = "send two open, empty files with the request (SCM_RIGHTS), for the state and for the memory: a VM \
                   opens no path; `mvm snapshot` does that";
        return Err(Response::fault(400, how));
    };
    Ok(Outcome::Later(Box::new(move |vm| match save(vm, state.into(), &memory.into()) {
        Ok(()) => Response::done(),
        Err(message) => Response::fault(400, &format!("cannot save the VM: {message}")),
    })))
}

fn save(vm: &VmHandle, mut state: File, memory: &File) -> Result<(), String> {
    let saver = vm.saver().ok_or("it is not one that can be saved")?;
    let saved = saver.save(memory).map_err(|error| chain(&error))?;
    let bytes = saved.encode().map_err(|error| chain(&error))?;
    state.write_all(&bytes).map_err(|error| format!("cannot write its state: {error}"))
}
