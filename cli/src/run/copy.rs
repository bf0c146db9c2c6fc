//! Containers that are copies of others which run.

use container::{Copied, MountSource, NetworkOption, PortMapping, VolumeMount};
use instance::{
    Archive, InstanceError, Kept, VmName, Volume, VolumeDriver, VolumeHold, VolumeName, VolumeRecord,
    Volumes, time,
};

use super::keep::{Side, Which, keep};
use super::order::Order;
use super::policy::RestartPolicy;
use super::start::prepare;
use crate::background::{Report, Reporter};
use crate::snapshot::VolumeCopy;
use crate::{chain, exit_code};

/// What a copy has in place of what the first one has.
pub struct Change {
    pub name: Option<VmName>,
    pub publish: Vec<PortMapping>,
    /// Its volumes, which get names of their own.
    pub volumes: Vec<VolumeCopy>,
    /// It is removed when it ends, as the first one may be.
    pub removes: bool,
}

/// The volumes of a container that are copied with it. What two containers can't have at the same time is refused, and
/// what is outside of the VM's memory and its disks.
pub fn check_copy(kept: &Kept) -> Result<Vec<Volume>, String> {
    let order: Order = kept.order().map_err(|error| format!("cannot read what was ordered: {error}"))?;
    if kept.entry.started.is_none() {
        return Err("it has not started yet: wait until it runs".to_owned());
    }
    if kept.entry.pod.is_some() {
        return Err("it is in a pod, whose VM has other containers too: it cannot be copied".to_owned());
    }
    let all = Volumes::of_user().map_err(|error| chain(&error))?;
    let mut volumes: Vec<Volume> = Vec::new();
    for mount in &order.options.mounts {
        match &mount.source {
            MountSource::Volume(VolumeMount { name: Some(name), .. }) => {
                let volume = all.find(name).map_err(|error| chain(&error))?;
                if volume.record.driver == VolumeDriver::Shared {
                    return Err(format!(
                        "it has a shared volume at {}, a folder of the host: such a container cannot be copied",
                        mount.target
                    ));
                }
                // Two parts of it may be mounted.
                if volumes.iter().all(|other| other.record.name != *name) {
                    volumes.push(volume);
                }
            }
            MountSource::Volume(VolumeMount { name: None, .. }) => {}
            MountSource::Bind { .. } => {
                return Err(format!(
                    "it has a folder, file or socket of the host at {}: such a container cannot be copied",
                    mount.target
                ));
            }
            MountSource::Tmpfs(_) => {}
        }
    }
    match &order.options.network {
        NetworkOption::Tap(..) => Err("it has a tap, which one VM alone can have".to_owned()),
        NetworkOption::Bridge(..) => {
            Err("it has an address in the network of a bridge, which one VM alone can have".to_owned())
        }
        NetworkOption::None | NetworkOption::User { .. } => Ok(volumes),
    }
}

/// Makes a volume of `copy`, which the container of `order` gets in place of the one that it is a copy of.
fn take_volume(order: &mut Order, volumes: &Volumes, copy: VolumeCopy) -> Result<VolumeHold, String> {
    let VolumeCopy { name: before, make } = copy;
    let was = volumes.find(&before).map_err(|error| chain(&error))?.record;
    let name = VolumeName::random().map_err(|error| format!("cannot draw a random name: {error}"))?;
    let record = VolumeRecord { name: name.clone(), created: time::now(), is_anonymous: true, ..was };
    let hold = volumes.create_held(&record, make).map_err(|error| chain(&error))?;
    for mount in &mut order.options.mounts {
        if let MountSource::Volume(volume) = &mut mount.source
            && volume.name.as_ref() == Some(&before)
        {
            (volume.name, volume.is_anonymous) = (Some(name.clone()), true);
        }
    }
    Ok(hold)
}

/// Keeps a container that goes on as a copy of that of `kept`; returns its exit code.
pub fn copy(kept: &Kept, copied: Copied, change: Change, mut reporter: Reporter) -> u8 {
    let Change { name, publish, volumes, removes } = change;
    let said = |error: InstanceError| chain(&error);
    let mut holds = Vec::new();
    let prepared = prepare(kept).map_err(|failure| chain(&failure)).and_then(|(mut order, means)| {
        let (archive, all) = (Archive::of_user().map_err(said)?, Volumes::of_user().map_err(said)?);
        for volume in volumes {
            holds.push(take_volume(&mut order, &all, volume)?);
        }
        Ok((order, means, archive))
    });
    let names: Vec<_> = holds.iter().map(|hold| hold.volume.record.name.clone()).collect();
    let (mut order, mut means, archive) = match prepared {
        Ok(prepared) => prepared,
        Err(message) => {
            drop(holds);
            if let Ok(archive) = Archive::of_user() {
                archive.remove_volumes(&names);
            }
            let code = exit_code::CONTAINER;
            reporter.report(&Report::Failed { code, message });
            return code;
        }
    };
    (order.options.publish, order.options.publish_all, order.cid_file) = (publish, false, None);
    if removes {
        (order.removes, order.restart) = (true, RestartPolicy::No);
    }
    (means.copied, means.holds) = (Some(copied), holds);
    let code = keep(&order, means, Which::New(name), Side::Background { reporter, front: None });
    // Where there is a record of it, it has them.
    archive.remove_volumes(&names);
    code
}
