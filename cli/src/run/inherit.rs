//! `--volumes-from`: what another container has mounted.

use std::collections::HashSet;
use std::str::FromStr;

use container::{MountOption, MountSource, RunOptions};

use super::order::Order;
use crate::{chain, targets};

/// One `--volumes-from NAME[:ro|rw]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumesFrom {
    container: String,
    read_only: bool,
    is_labelled: bool,
    text: String,
}

impl FromStr for VolumesFrom {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || format!("invalid container {text:?}: use NAME, or NAME:ro to read only");
        let (container, modes) = text.split_once(':').unwrap_or((text, "rw"));
        let (mut read_only, mut is_labelled, mut words) = (None, false, 0_usize);
        for mode in modes.split(',') {
            words = words.saturating_add(1);
            match mode {
                "ro" if read_only.is_none() => read_only = Some(true),
                "rw" if read_only.is_none() => read_only = Some(false),
                "z" | "Z" if !is_labelled => is_labelled = true,
                _ => return Err(error()),
            }
        }
        if container.is_empty() {
            return Err(error());
        }
        let read_only = read_only.unwrap_or(false);
        Ok(Self { container: container.to_owned(), read_only, is_labelled, text: text.to_owned() })
    }
}

impl VolumesFrom {
    /// It asks for a label of SELinux.
    pub fn is_labelled(&self) -> bool {
        self.is_labelled
    }

    /// As the user has written it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What the other container has mounted, as this one gets it.
    ///
    /// # Errors
    ///
    /// A line for the user: there is no such container, or it is a VM.
    fn mounts(&self) -> Result<Vec<MountOption>, String> {
        let kept = targets::kept(&self.container)
            .map_err(|error| format!("--volumes-from {}: {}", self.text, chain(&error)))?;
        let order: Order =
            kept.order().map_err(|error| format!("--volumes-from {}: {}", self.text, chain(&error)))?;
        Ok(self.given(order.options.mounts, kept.is_created()))
    }

    /// `is_new`: the other one has not run yet, and so has not filled its volumes with what its image has.
    fn given(&self, mounts: Vec<MountOption>, is_new: bool) -> Vec<MountOption> {
        let given = |mut mount: MountOption| {
            mount.read_only |= self.read_only;
            if let MountSource::Volume(volume) = &mut mount.source {
                volume.is_empty |= !is_new;
            }
            mount
        };
        mounts.into_iter().map(given).collect()
    }
}

/// Adds to `options` what the containers of `from` have mounted where nothing else is; at one place, the last of them
/// counts.
///
/// # Errors
///
/// A line for the user.
pub fn add(options: &mut RunOptions, from: &[VolumesFrom]) -> Result<(), String> {
    let mut all = Vec::new();
    for from in from {
        all.extend(from.mounts()?);
    }
    merge(options, all);
    Ok(())
}

fn merge(options: &mut RunOptions, others: Vec<MountOption>) {
    let temporary = options.tmpfs.iter().map(|(target, _)| target.trim_end_matches('/'));
    let mut taken: HashSet<String> = temporary.map(str::to_owned).collect();
    taken.extend(options.mounts.iter().map(|mount| mount.target.clone()));
    let mut added: Vec<_> =
        others.into_iter().rev().filter(|mount| taken.insert(mount.target.clone())).collect();
    added.reverse();
    options.mounts.append(&mut added);
}

#[cfg(test)]
mod tests {
    use container::ShortMount;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("web", Some(("web", false)))]
    #[case("web:rw", Some(("web", false)))]
    #[case("web:ro", Some(("web", true)))]
    #[case("web:ro,z", Some(("web", true)))]
    #[case("web:Z", Some(("web", false)))]
    #[case("", None)]
    #[case(":ro", None)]
    #[case("web:", None)]
    #[case("web:nocopy", None)]
    #[case("web:ro,rw", None)]
    #[case("web:rslave", None)]
    #[case("web:ro:x", None)]
    fn containers_are_named_as_dockers(#[case] text: &str, #[case] expected: Option<(&str, bool)>) {
        let read = text.parse::<VolumesFrom>();
        let expected = expected.map(|(container, read_only)| (container.to_owned(), read_only));
        assert_eq!(read.as_ref().ok().map(|from| (from.container.clone(), from.read_only)), expected);
        assert!(expected.is_some() || read.unwrap_err().contains("use NAME, or NAME:ro"));
    }

    fn mounts(texts: &[&str]) -> Vec<MountOption> {
        texts.iter().map(|text| text.parse::<ShortMount>().unwrap().mount).collect()
    }

    #[test]
    fn own_mounts_and_later_containers_go_first() {
        let mut options = RunOptions {
            mounts: mounts(&["mine:/a"]),
            tmpfs: vec![("/t/".into(), String::new())],
            ..RunOptions::default()
        };
        let web: VolumesFrom = "web:ro".parse().unwrap();
        let db: VolumesFrom = "db".parse().unwrap();
        let mut others = web.given(mounts(&["w1:/a", "w2:/b", "w3:/t", "/src:/c"]), false);
        others.extend(db.given(mounts(&["d1:/b", "d2:/d:ro"]), true));
        merge(&mut options, others);
        let shown: Vec<_> =
            options.mounts.iter().map(|mount| (mount.target.as_str(), mount.read_only)).collect();
        assert_eq!(shown, [("/a", false), ("/c", true), ("/b", false), ("/d", true)]);
        let copies = |mount: &MountOption| match &mount.source {
            MountSource::Volume(volume) => !volume.is_empty,
            _ => false,
        };
        // One that has run has filled its volumes.
        assert_eq!(options.mounts.iter().map(copies).collect::<Vec<_>>(), [true, false, true, true]);
        let ran = web.given(mounts(&["w1:/a"]), false);
        assert!(ran[0].read_only && !copies(&ran[0]));
    }
}
