//! Copies of containers.

use ::container::PortMapping;
use instance::{Kept, Running, VmName};

use super::{ForkCommand, Refusal};
use crate::background::Reporter;
use crate::run::{Change, check_copy, copy};
use crate::snapshot::LiveContainer;

/// A container as it was, and what copies of it have.
pub struct Original {
    kept: Kept,
    live: LiveContainer,
    publish: Vec<PortMapping>,
    removes: bool,
}

impl Original {
    /// Saves the VM of the container `kept`, for what `command` asks.
    pub fn of(kept: Kept, vm: &Running, command: &ForkCommand) -> Result<Self, Refusal> {
        let volumes = check_copy(&kept).map_err(Refusal::failed)?;
        let changes = ::container::changes_path(&kept.directory);
        let changes = changes.exists().then_some(changes);
        let place = instance::make_data_directory();
        let place = place
            .map_err(|error| Refusal::failed(format!("cannot make a directory for its memory: {error}")))?;
        let live = LiveContainer::of(vm, &place, changes.as_deref(), &volumes).map_err(Refusal::failed)?;
        Ok(Self { kept, live, publish: command.publish.clone(), removes: command.rm })
    }
}

impl super::Original for Original {
    fn run(self, name: Option<VmName>, is_only: bool, reporter: Reporter) -> u8 {
        let Self { kept, live, publish, removes } = self;
        let (copied, volumes) = live.into_copied(kept.entry.id.as_str(), is_only);
        copy(&kept, copied, Change { name, publish, volumes, removes }, reporter)
    }
}
