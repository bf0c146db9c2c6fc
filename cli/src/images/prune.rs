//! `mvm image prune`.

use std::collections::{HashMap, HashSet};

use clap::Args;
use image::{Digest, Image};

use super::list::{chosen, is_dangling};
use super::manage::{note, said};
use super::{ContainerUse, containers, is_used, known, store};
use crate::complaint::{Complaint, complete};
use crate::format::{Filter, Filters};
use crate::process::ExitCode;
use crate::prune::deleted;
use crate::{chain, events};

const EXAMPLES: &str = "\
Examples:
  mvm image prune --force
  mvm image prune --all --filter until=240h

Filters: dangling=true|false, label=KEY[=VALUE], label!=KEY[=VALUE], until=TIME.";

const FILTERS: &[&str] = &["dangling", "label", "label!", "until"];

/// Arguments of `mvm image prune`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct PruneCommand {
    /// Remove all images that no container uses, not only those without a name
    #[arg(long, short)]
    all: bool,

    /// Remove only images that fit, as in until=24h
    #[arg(long, value_name = "FILTER")]
    filter: Vec<Filter>,

    /// Do not ask
    #[arg(long, short)]
    force: bool,
}

impl PruneCommand {
    /// Removes images that nothing uses.
    pub fn run(self) -> ExitCode {
        complete(self.prune())
    }

    fn prune(self) -> Result<ExitCode, Complaint> {
        let filters = Filters::new(&self.filter, FILTERS)?;
        // As docker's: dangling=false is another way to say --all.
        let all = self.all || filters.flag("dangling")? == Some(false);
        let others: Vec<Filter> =
            self.filter.iter().filter(|filter| filter.name != "dangling").cloned().collect();
        let others = Filters::new(&others, FILTERS)?;
        let warning = format!("WARNING! This will remove {}.\n", which(all));
        crate::prune::prune(self.force, &warning, || prune(&others, all))
    }
}

/// Which images are removed, as docker says it.
pub fn which(all: bool) -> &'static str {
    if all { "all images without at least one container associated to them" } else { "all dangling images" }
}

/// Removes images that fit `filters` and that nothing uses: those without a name, or all; without a filter also what
/// pulls and loads have left that were interrupted. What there is to say of it, and how many bytes that has freed.
///
/// # Errors
///
/// A [`Complaint`].
pub fn prune(filters: &Filters, all: bool) -> Result<(String, u64), Complaint> {
    let store = store()?;
    known()?;
    let images = store.images().map_err(|error| chain(&error))?;
    let before = bytes(&images);
    // What killed processes left has no age that a filter would ask for.
    let left = if filters.is_empty() {
        store.remains().saturating_add(store.remove_interrupted().map_err(|error| chain(&error))?)
    } else {
        0
    };
    let mut said_of = String::new();
    for image in removable(chosen(images, filters)?, &containers(), all) {
        // Another process may have removed it, or given it a name meanwhile.
        if let Ok(removed) = store.remove_unused(&image.id.to_string(), all, is_used) {
            note(&removed);
            said_of.push_str(&said(&removed).replace("Untagged", "untagged").replace("Deleted", "deleted"));
        }
    }
    let after = bytes(&store.images().map_err(|error| chain(&error))?);
    events::note_prune("image", before.saturating_sub(after));
    Ok((deleted("Images", &said_of), before.saturating_sub(after).saturating_add(left)))
}

/// The images that no container uses, and unless `all` are wanted no reference names.
fn removable(mut images: Vec<Image>, containers: &[ContainerUse], all: bool) -> Vec<Image> {
    let used: HashSet<&str> = containers.iter().map(|container| container.image.as_str()).collect();
    images.retain(|image| !used.contains(image.id.to_string().as_str()) && (all || is_dangling(image)));
    images
}

/// Bytes of the layers of these images, each counted once.
pub fn bytes(images: &[Image]) -> u64 {
    let layers: HashMap<Digest, u64> =
        images.iter().flat_map(|image| &image.layers).map(|layer| (layer.diff_id, layer.size)).collect();
    layers.values().sum()
}

#[cfg(test)]
pub mod tests {
    use std::io::Write;

    use image::Store;
    use serde_json::json;

    use super::*;

    /// A store with an image `tools:1` and one without a name, of layers of their own.
    pub fn two_images() -> (tempfile::TempDir, Vec<Image>) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("images")).unwrap();
        for (name, reference) in [("named", Some("tools:1".parse().unwrap())), ("nameless", None)] {
            // A header and a block of data, and the two blocks at the end.
            let mut header = [0; 512];
            let fields = format!("{name:\0<100}0000644\00000000\00000000\000000000010\000000000000\0");
            (&mut header[..]).write_all(fields.as_bytes()).unwrap();
            header[148..156].fill(b' ');
            header[156] = b'0';
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            (&mut header[148..156]).write_all(format!("{sum:06o}\0 ").as_bytes()).unwrap();
            let tar = [&header[..], &[7; 8], &[0; 504 + 1024]].concat();
            let history = ("2024-05-06T07:08:09Z", name);
            store.import_stream(&tar[..], &json!({}), history, reference.as_ref()).unwrap();
        }
        (directory, store.images().unwrap())
    }

    pub fn container(image: &Image, is_running: bool) -> ContainerUse {
        ContainerUse { image: image.id.to_string(), size: 1000, is_running, row: json!({"Names": "web"}) }
    }

    #[test]
    fn what_a_container_uses_stays() {
        let (_directory, images) = two_images();
        let (named, nameless): (Vec<_>, Vec<_>) =
            images.iter().cloned().partition(|image| !is_dangling(image));
        let ids = |containers: &[ContainerUse], all| -> Vec<Digest> {
            removable(images.clone(), containers, all).iter().map(|image| image.id).collect()
        };
        let (named, nameless) = (&named[0], &nameless[0]);
        assert_eq!(ids(&[], false), [nameless.id]);
        assert_eq!(ids(&[], true).len(), 2);
        assert_eq!(ids(&[container(nameless, false)], false), []);
        assert_eq!(ids(&[container(nameless, true)], true), [named.id]);
        assert_eq!(ids(&[container(nameless, true), container(named, false)], true), []);
    }
}
