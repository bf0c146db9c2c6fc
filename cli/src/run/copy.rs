//! Containers that are copies of others which run.

use container::{Copied, MountSource, NetworkOption, PortMapping};
use instance::{Kept, VmName};

use super::keep::{Side, Which, keep};
use super::order::Order;
use super::policy::RestartPolicy;
use super::start::prepare;
use crate::background::{Report, Reporter};
use crate::{chain, exit_code};

/// What a copy has in place of what the first one has.
pub struct Change {
    pub name: Option<VmName>,
    pub publish: Vec<PortMapping>,
    /// It is removed when it ends, as the first one may be.
    pub removes: bool,
}

/// Refuses what two containers can't have at the same time, or what is outside of the VM's memory and the container's
/// changes.
pub fn check_copy(kept: &Kept) -> Result<(), String> {
    let order: Order = kept.order().map_err(|error| format!("cannot read what was ordered: {error}"))?;
    if kept.entry.pod.is_some() {
        return Err("it is in a pod, whose VM has other containers too: it cannot be copied".to_owned());
    }
    for mount in &order.options.mounts {
        match &mount.source {
            MountSource::Volume(_) => {
                return Err(format!(
                    "it has a volume at {}, which one container alone can have",
                    mount.target
                ));
            }
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
        NetworkOption::None | NetworkOption::User { .. } => Ok(()),
    }
}

/// Keeps a container that goes on as a copy of that of `kept`; returns its exit code.
pub fn copy(kept: &Kept, copied: Copied, change: Change, mut reporter: Reporter) -> u8 {
    let Change { name, publish, removes } = change;
    let (mut order, mut means) = match prepare(kept) {
        Ok(prepared) => prepared,
        Err(failure) => {
            let code = exit_code::CONTAINER;
            reporter.report(&Report::Failed { code, message: chain(&failure) });
            return code;
        }
    };
    (order.options.publish, order.options.publish_all, order.cid_file) = (publish, false, None);
    if removes {
        (order.removes, order.restart) = (true, RestartPolicy::No);
    }
    means.copied = Some(copied);
    keep(&order, means, Which::New(name), Side::Background { reporter, front: None })
}
