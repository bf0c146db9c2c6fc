//! Containers that do not run.

use std::path::PathBuf;

use container::{Split, Storage, Visit};
use instance::{Archive, Identity, Instance, InstanceError, Kept};

use crate::chain;
use crate::run::{Means, prepare};

/// A VM with the root of a container that does not run, and the paths of the folders that are shared with it.
///
/// # Errors
///
/// A line for the user, behind the container's name.
pub fn visit(kept: &Kept) -> Result<(Visit, Vec<PathBuf>), String> {
    let (order, means) = prepare(kept).map_err(|failure| chain(&failure))?;
    if container::storage(&order.options) == Storage::Memory {
        return Err(
            "its changes were in memory, and went with its end: what is left of it is its image, as in \
                    `mvm create` and `mvm cp`"
                .into(),
        );
    }
    let said = |error: InstanceError| chain(&error);
    let archive = Archive::of_user().map_err(said)?;
    let keep = archive.take(&kept.entry.id).map_err(said)?;
    let keep = keep.ok_or("it has just been started, or its files are being copied: try again")?;
    let identity =
        Identity { id: Some(kept.entry.id.clone()), name: kept.entry.name.clone(), directory: None };
    let instance = Instance::claim(&identity, order.summary(&means.assets)).map_err(said)?;
    let Means { assets, image, hold, .. } = means;
    let split = Split { until_open: Box::new(hold), leave: Box::new(|| {}) };
    let visit = Visit::start((&assets, &image, &order.options), instance, keep, split);
    let visit = visit.map_err(|error| format!("cannot reach its files: {}", chain(&error)))?;
    let shared = order.options.mounts.iter().map(|mount| PathBuf::from(&mount.target)).collect();
    Ok((visit, shared))
}
