//! `mvm image prune`.

use std::collections::{HashMap, HashSet};
use std::io::{self, BufRead, Read};

use clap::Args;
use image::{Digest, Image};

use super::human::size;
use super::list::{chosen, is_dangling};
use super::manage::{note, said};
use super::{ContainerUse, complete, containers, is_used, store};
use crate::format::{Filter, Filters};
use crate::process::ExitCode;
use crate::{chain, events, exit_code, print};

const EXAMPLES: &str = "\
Examples:
  mvm image prune --force
  mvm image prune --all --filter until=240h

Filters: dangling=true|false, label=KEY[=VALUE], label!=KEY[=VALUE], until=TIME.";

const FILTERS: &[&str] = &["dangling", "label", "label!", "until"];
/// The most bytes of an answer.
const MAX_ANSWER: u64 = 1024;

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

    fn prune(self) -> Result<ExitCode, String> {
        let filters = Filters::new(&self.filter, FILTERS).map_err(|error| error.to_string())?;
        // As docker's: dangling=false is another way to say --all.
        let all = self.all || filters.flag("dangling").map_err(|error| error.to_string())? == Some(false);
        let others: Vec<Filter> =
            self.filter.iter().filter(|filter| filter.name != "dangling").cloned().collect();
        let others = Filters::new(&others, FILTERS).map_err(|error| error.to_string())?;
        let which = if all {
            "all images without at least one container associated to them"
        } else {
            "all dangling images"
        };
        if !self.force && !is_confirmed(&format!("WARNING! This will remove {which}.\n"))? {
            return Ok(exit_code::SUCCESS.into());
        }
        let (said, freed) = prune(&others, all)?;
        let text = format!("{said}Total reclaimed space: {}\n", size(freed));
        Ok(print(text.as_bytes(), exit_code::SUCCESS))
    }
}

/// Removes images that fit `filters` and that nothing uses: those without a name, or all; without a filter also what pulls
/// and loads have left that were interrupted. What there is to say of it, and how many bytes that has freed.
///
/// # Errors
///
/// A line for the user.
pub fn prune(filters: &Filters, all: bool) -> Result<(String, u64), String> {
    let store = store()?;
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
    if !said_of.is_empty() {
        said_of = format!("Deleted Images:\n{said_of}\n");
    }
    Ok((said_of, before.saturating_sub(after).saturating_add(left)))
}

/// The images that no container uses, and unless `all` are wanted no reference names.
fn removable(mut images: Vec<Image>, containers: &[ContainerUse], all: bool) -> Vec<Image> {
    let used: HashSet<&str> = containers.iter().map(|container| container.image.as_str()).collect();
    images.retain(|image| !used.contains(image.id.to_string().as_str()) && (all || is_dangling(image)));
    images
}

/// Asks on standard output, after the `warning`; anything but `y` and `yes` is a no, as is the end of the input.
///
/// # Errors
///
/// A line for the user.
pub fn is_confirmed(warning: &str) -> Result<bool, String> {
    let question = format!("{warning}Are you sure you want to continue? [y/N] ");
    print(question.as_bytes(), exit_code::SUCCESS);
    let mut answer = String::new();
    let input = io::stdin().lock().take(MAX_ANSWER);
    let read = io::BufReader::new(input).read_line(&mut answer);
    read.map_err(|error| format!("cannot read standard input: {error}"))?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
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
