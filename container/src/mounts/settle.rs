//! What a container's mounts are before it is made: volumes of its image, names for those that have none.

use std::collections::{BTreeMap, HashSet};

use instance::{Format, VolumeDriver, VolumeName, VolumeRecord, time};

use super::tmpfs::Tmpfs;
use super::{MountError, MountOption, MountSource, VolumeMount, clean_target};
use crate::image::ImageConfig;
use crate::options::{OptionsError, RunOptions};

/// Adds the volumes that the image names to those of `options`, and gives names to those that have none. Where that was
/// done before, nothing changes.
///
/// # Errors
///
/// [`OptionsError`] for two mounts at one place, and options of temporary file systems.
pub fn settle(options: &mut RunOptions, image: &ImageConfig) -> Result<(), OptionsError> {
    let mut taken = HashSet::new();
    for (target, words) in &options.tmpfs {
        Tmpfs::read(words)?;
        taken.insert(clean_target(target)?);
    }
    for mount in &options.mounts {
        if !taken.insert(mount.target.clone()) {
            return Err(MountError::Duplicate(mount.target.clone()).into());
        }
    }
    for target in &image.volumes {
        let target = clean_target(target)?;
        if taken.insert(target.clone()) {
            let volume = VolumeMount { is_anonymous: true, ..VolumeMount::default() };
            let source = MountSource::Volume(volume);
            options.mounts.push(MountOption { target, read_only: false, source });
        }
    }
    for mount in &mut options.mounts {
        if let MountSource::Volume(volume) = &mut mount.source
            && volume.name.is_none()
        {
            volume.name =
                Some(VolumeName::random().map_err(|error| OptionsError::Random(error.to_string()))?);
        }
    }
    Ok(())
}

/// The record of a new volume.
pub fn record(name: &VolumeName, driver: VolumeDriver) -> VolumeRecord {
    VolumeRecord {
        format: Format::default(),
        name: name.clone(),
        driver,
        created: time::now(),
        is_anonymous: false,
        labels: BTreeMap::new(),
        options: BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::ShortMount;
    use super::*;

    fn options(volumes: &[&str], tmpfs: &[&str]) -> RunOptions {
        let mounts = volumes.iter().map(|text| text.parse::<ShortMount>().unwrap().mount).collect();
        let tmpfs = tmpfs.iter().map(|target| ((*target).to_owned(), String::new())).collect();
        RunOptions { mounts, tmpfs, ..RunOptions::default() }
    }

    fn image(volumes: &[&str]) -> ImageConfig {
        ImageConfig {
            volumes: volumes.iter().map(|path| (*path).to_owned()).collect(),
            ..ImageConfig::default()
        }
    }

    #[test]
    fn volumes_of_the_image_are_added_where_nothing_else_is_mounted() {
        let mut settled = options(&["data:/a", "/b"], &["/t/"]);
        settle(&mut settled, &image(&["/a/", "/b", "/c", "/c", "/t"])).unwrap();
        let targets: Vec<_> = settled.mounts.iter().map(|mount| mount.target.as_str()).collect();
        assert_eq!(targets, ["/a", "/b", "/c"]);
        let names: HashSet<_> = settled
            .mounts
            .iter()
            .filter_map(|mount| match &mount.source {
                MountSource::Volume(volume) => Some((volume.name.clone().unwrap(), volume.is_anonymous)),
                _ => None,
            })
            .collect();
        assert_eq!((names.len(), names.iter().filter(|(_, anonymous)| *anonymous).count()), (3, 2));
        let before = settled.mounts.clone();
        settle(&mut settled, &image(&["/a/", "/b", "/c", "/t"])).unwrap();
        assert_eq!(settled.mounts, before);
    }

    #[test]
    fn two_at_one_place_are_refused() {
        for (volumes, tmpfs) in [(&["/x:/a", "data:/b/../a"][..], &[][..]), (&["data:/a"][..], &["/a/"][..])]
        {
            let error = settle(&mut options(volumes, tmpfs), &image(&[])).unwrap_err().to_string();
            assert!(error.contains("duplicate mount point /a"), "{error}");
        }
    }
}
