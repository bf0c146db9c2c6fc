//! Volumes that are made for the containers that name them.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};

use instance::{VolumeDriver, VolumeError, VolumeHold, VolumeName, VolumeRecord, Volumes};

use super::settle::record;
use super::{MountSource, PrepareError, VolumeMount, volume_size};
use crate::assets::Assets;
use crate::changes;
use crate::options::RunOptions;

/// Holds the volume `name`, which is made as `wanted` says where it is missing.
pub(super) fn hold(
    assets: &Assets,
    volumes: &Volumes,
    name: &VolumeName,
    wanted: &VolumeMount,
) -> Result<VolumeHold, PrepareError> {
    // One may be removed between these two.
    for _ in 0..3 {
        match volumes.hold(name) {
            Err(VolumeError::NotFound(_)) => {}
            held => return Ok(held?),
        }
        create(assets, volumes, &record_of(name, wanted))?;
    }
    Ok(volumes.hold(name)?)
}

/// Makes the volumes of `options`, which are settled, that are missing. A container that is not started yet has them.
///
/// # Errors
///
/// [`PrepareError`].
pub fn make_volumes(assets: &Assets, options: &RunOptions, volumes: &Volumes) -> Result<(), PrepareError> {
    for mount in &options.mounts {
        if let MountSource::Volume(wanted) = &mount.source
            && let Some(name) = &wanted.name
            && matches!(volumes.find(name), Err(VolumeError::NotFound(_)))
        {
            create(assets, volumes, &record_of(name, wanted))?;
        }
    }
    Ok(())
}

/// The record of the volume `name`, where it is made as `wanted` says.
fn record_of(name: &VolumeName, wanted: &VolumeMount) -> VolumeRecord {
    VolumeRecord {
        is_anonymous: wanted.is_anonymous,
        labels: wanted.labels.iter().cloned().collect(),
        options: wanted.options.iter().cloned().collect(),
        ..record(name, wanted.driver)
    }
}

/// Makes the volume that `record` describes, unless it is there; returns whether it is new.
///
/// # Errors
///
/// [`PrepareError`].
pub fn create(assets: &Assets, volumes: &Volumes, record: &VolumeRecord) -> Result<bool, PrepareError> {
    let size = volume_size(record.driver, &record.options)?;
    let made = volumes.create(record, |path| match record.driver {
        VolumeDriver::Local => changes::create_at(assets, path, size),
        VolumeDriver::Shared => {
            fs::DirBuilder::new().mode(0o755).create(path)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        }
    });
    Ok(made.map(|(_, is_new)| is_new)?)
}
