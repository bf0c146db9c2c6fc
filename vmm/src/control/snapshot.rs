//! Saving the VM.

use std::fs::File;
use std::io::Write;

use devices::log::chain;
use instance::api::SnapshotCreate;

use super::response::Response;
use super::router::{Content, Outcome};
use crate::handle::VmHandle;
use crate::snapshot::Hold;

/// Saves the VM in two files that come with the request: its state, then its memory. A third one is a socket, by which
/// another process hears that the VM stands still, and lets it go when it has copied the disks; or as long as it has the
/// other end of which, the VM stays paused. The VM opens no path itself: a process that is confined can't.
pub(super) fn create(_vm: &VmHandle, content: Content<'_>) -> Result<Outcome, Response> {
    let SnapshotCreate { snapshot_path, mem_file_path, stays_paused, .. } = super::body::read(content.body)?;
    let mut files = content.files.into_iter();
    let (state, memory, hold) = (files.next(), files.next(), files.next().map(Hold::new));
    let two = state.zip(memory);
    let Some((state, memory)) = two.filter(|_| snapshot_path.is_none() && mem_file_path.is_none()) else {
        let how = "send two open, empty files with the request (SCM_RIGHTS), for the state and for the memory: a VM \
                   opens no path; `mvm snapshot` does that";
        return Err(Response::fault(400, how));
    };
    Ok(Outcome::Later(Box::new(move |vm| {
        let files = (state.into(), memory.into());
        let saved = match hold {
            Some(hold) if stays_paused => stay(vm, hold).and_then(|()| save(vm, files, None)),
            hold => save(vm, files, hold.as_ref()),
        };
        match saved {
            Ok(()) => Response::done(),
            Err(message) => Response::fault(400, &format!("cannot save the VM: {message}")),
        }
    })))
}

fn stay(vm: &VmHandle, hold: Hold) -> Result<(), String> {
    vm.stay_paused(hold).map_err(|error| chain(&error))
}

fn save(vm: &VmHandle, (mut state, memory): (File, File), hold: Option<&Hold>) -> Result<(), String> {
    let saver = vm.saver().ok_or("it is not one that can be saved")?;
    let saved = saver.save_with(&memory, hold).map_err(|error| chain(&error))?;
    let bytes = saved.encode().map_err(|error| chain(&error))?;
    state.write_all(&bytes).map_err(|error| format!("cannot write its state: {error}"))
}
