//! What is kept of a VM in the background.

use instance::{Archive, End, Entry, Format, Instance, InstanceError, Keep, Kind, Phase, Process, time};
use serde_json::json;
use vmm::VmConfig;

use super::Refusal;
use crate::{chain, exit_code, run};

/// Makes the record of a VM, whose root may be an `image`.
pub fn keep(
    instance: &Instance,
    config: &VmConfig,
    image: Option<&str>,
    removes: bool,
) -> Result<Keep, Refusal> {
    let refusal = |error: InstanceError| {
        let code = if error.is_the_hosts() { exit_code::HOST } else { exit_code::USAGE };
        Refusal { code, message: chain(&error) }
    };
    let path = |path: &std::path::Path| path.display().to_string();
    let process = Process::own().map_err(|error| Refusal::host("name this process", &error))?;
    let entry = Entry {
        format: Format::default(),
        id: instance.id().clone(),
        name: instance.identity().name,
        kind: Kind::Vm,
        created: time::now(),
        started: Some(time::now()),
        phase: Phase::Started,
        restarts: 0,
        pod: None,
        process,
        removes,
        image: image.map_or_else(
            || config.rootfs.as_ref().map_or_else(|| "-".into(), |disk| path(&disk.path)),
            ToOwned::to_owned,
        ),
        image_id: None,
        command: vec![path(&config.kernel)],
        ports: config.publish.iter().map(ToString::to_string).collect(),
        labels: Default::default(),
        volumes: Vec::new(),
        details: json!({}),
    };
    Archive::of_user().and_then(|archive| archive.add(entry)).map_err(refusal)
}

/// Has the VM of `keep` begin another life.
pub fn begin(keep: &mut Keep) -> Result<(), Refusal> {
    let process = Process::own().map_err(|error| Refusal::host("name this process", &error))?;
    let begun = keep.begin(|entry| (entry.phase, entry.process) = (Phase::Started, process));
    begun.map_err(|error| Refusal::host("write the VM's record", &error))
}

/// Removes the record of a VM that could not be built. One that was saved still is.
pub fn forget(mut keep: Keep) {
    if run::stay_saved(&mut keep) {
        return;
    }
    if let Err(error) = Archive::of_user().and_then(|archive| archive.remove_own(&keep)) {
        tracing::warn!("{}", chain(&error));
    }
}

/// Notes how the VM ended, and what went wrong where something did.
pub fn finish(mut keep: Keep, code: u8, error: String) {
    if run::stay_saved(&mut keep) || run::note_saved(&mut keep) {
        return;
    }
    let end = End { code, out_of_memory: false, error, finished: time::now() };
    if let Err(error) = keep.ended(&end) {
        tracing::warn!(%error, "cannot note how the VM ended");
    }
    if keep.entry().removes {
        forget(keep);
    }
}
