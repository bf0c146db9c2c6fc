//! `mvm system df`: the disk space of images, containers and volumes.

use std::collections::{HashMap, HashSet};

use clap::{Args, Subcommand};
use image::{Digest, Image};
use serde_json::{Value, json};

use super::human::{age, date_of, size};
use super::list::{repository, short};
use super::prune::bytes;
use super::{ContainerUse, containers, store};
use crate::complaint::{Complaint, complete};
use crate::containers::SystemPruneCommand;
use crate::events::EventsCommand;
use crate::format::{Column, Format};
use crate::process::ExitCode;
use crate::run::RestoreCommand;
use crate::volumes::{self, VolumeUse};
use crate::{chain, exit_code, print};

const GROUP_EXAMPLES: &str = "\
Examples:
  mvm system df
  mvm system df --verbose";

const EXAMPLES: &str = "\
Examples:
  mvm system df
  mvm system df --verbose
  mvm system df --format '{{.Type}}: {{.Size}}'

Sizes are those of the layers' files; a layer that several images share
counts once. What interrupted pulls have left counts as images that can be
removed: `mvm image prune` does.
Fields of templates: Type, TotalCount, Active, Size, Reclaimable.";

const COLUMNS: &[Column] = &[
    ("Type", "TYPE"),
    ("TotalCount", "TOTAL"),
    ("Active", "ACTIVE"),
    ("Size", "SIZE"),
    ("Reclaimable", "RECLAIMABLE"),
];
const IMAGES: &[Column] = &[
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("ID", "IMAGE ID"),
    ("CreatedSince", "CREATED"),
    ("Size", "SIZE"),
    ("SharedSize", "SHARED SIZE"),
    ("UniqueSize", "UNIQUE SIZE"),
    ("Containers", "CONTAINERS"),
];
const CONTAINERS: &[Column] = &[
    ("ID", "CONTAINER ID"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("LocalVolumes", "LOCAL VOLUMES"),
    ("Size", "SIZE"),
    ("RunningFor", "CREATED"),
    ("Status", "STATUS"),
    ("Names", "NAMES"),
];

const VOLUMES: &[Column] = &[("Name", "VOLUME NAME"), ("Links", "LINKS"), ("Size", "SIZE")];

/// Arguments of `mvm system`.
#[derive(Args)]
#[command(after_help = GROUP_EXAMPLES, disable_help_subcommand = true, arg_required_else_help = true)]
pub struct SystemCommand {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the disk space of images, containers and volumes
    Df(DfCommand),
    /// Print what happens to containers and images
    Events(EventsCommand),
    /// Remove containers that do not run, and images that nothing uses
    Prune(SystemPruneCommand),
    /// Start containers by their restart policy
    Restore(RestoreCommand),
}

/// Arguments of `mvm system df`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
struct DfCommand {
    /// Print json, "table TEMPLATE" or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,

    /// Show each image, container and volume
    #[arg(long, short)]
    verbose: bool,
}

impl SystemCommand {
    /// Runs the command.
    pub fn run(self) -> ExitCode {
        match self.command {
            Command::Df(command) => complete(command.show()),
            Command::Events(command) => command.run(),
            Command::Prune(command) => command.run(),
            Command::Restore(command) => command.run(),
        }
    }
}

impl DfCommand {
    fn show(self) -> Result<ExitCode, Complaint> {
        let store = store()?;
        let images = store.images().map_err(|error| chain(&error))?;
        let interrupted = store.interrupted().map_err(|error| chain(&error))?;
        let containers = containers();
        let volumes = volumes::all()?;
        let text = match (self.verbose, &self.format) {
            (false, format) => {
                let rows = [
                    images_row(&images, &containers, interrupted),
                    containers_row(&containers),
                    volumes_row(&volumes),
                ];
                let shown: Vec<&str> = COLUMNS.iter().map(|(field, _)| *field).collect();
                let default = Format::Table(None);
                format.as_ref().unwrap_or(&default).list(COLUMNS, &shown, &rows)?
            }
            (true, Some(format)) if !format.is_default() => {
                let rows: Vec<Value> = containers.iter().map(|container| container.row.clone()).collect();
                let volumes: Vec<Value> = volumes.iter().map(VolumeUse::fields).collect();
                let all = json!({
                    "Images": image_rows(&images, &containers), "Containers": rows, "Volumes": volumes,
                });
                Format::inspect(Some(format), &[all])?
            }
            (true, _) => verbose(&images, &containers, &volumes),
        };
        Ok(print(text.as_bytes(), exit_code::SUCCESS))
    }
}

/// `part` and how much of `whole` that is.
fn share(part: u64, whole: u64) -> String {
    match part.saturating_mul(100).checked_div(whole) {
        Some(percent) => format!("{} ({percent}%)", size(part)),
        None => size(part),
    }
}

/// `interrupted` are the bytes of pulls that were interrupted.
fn images_row(images: &[Image], containers: &[ContainerUse], interrupted: u64) -> Value {
    let used: HashSet<&str> = containers.iter().map(|container| container.image.as_str()).collect();
    let in_use: Vec<Image> =
        images.iter().filter(|image| used.contains(image.id.to_string().as_str())).cloned().collect();
    let all = bytes(images).saturating_add(interrupted);
    let reclaimable = all.saturating_sub(bytes(&in_use));
    json!({
        "Type": "Images", "TotalCount": images.len().to_string(), "Active": in_use.len().to_string(),
        "Size": size(all), "Reclaimable": share(reclaimable, all),
    })
}

fn containers_row(containers: &[ContainerUse]) -> Value {
    let running = containers.iter().filter(|container| container.is_running).count();
    let all: u64 = containers.iter().map(|container| container.size).sum();
    let ended: u64 =
        containers.iter().filter(|container| !container.is_running).map(|container| container.size).sum();
    json!({
        "Type": "Containers", "TotalCount": containers.len().to_string(), "Active": running.to_string(),
        "Size": size(all), "Reclaimable": share(ended, all),
    })
}

fn volumes_row(volumes: &[VolumeUse]) -> Value {
    let all: u64 = volumes.iter().map(|one| one.size).sum();
    let unused: u64 = volumes.iter().filter(|one| one.links == 0).map(|one| one.size).sum();
    let active = volumes.iter().filter(|one| one.links > 0).count();
    json!({
        "Type": "Local Volumes", "TotalCount": volumes.len().to_string(), "Active": active.to_string(),
        "Size": size(all), "Reclaimable": share(unused, all),
    })
}

fn image_rows(images: &[Image], containers: &[ContainerUse]) -> Vec<Value> {
    let mut users: HashMap<Digest, usize> = HashMap::new();
    for image in images {
        let own: HashSet<Digest> = image.layers.iter().map(|layer| layer.diff_id).collect();
        own.into_iter().for_each(|layer| *users.entry(layer).or_default() += 1);
    }
    let row = |image: &Image| {
        let is_shared = |layer: Digest| users.get(&layer).is_some_and(|users| *users > 1);
        let shared =
            image.layers.iter().filter(|layer| is_shared(layer.diff_id)).map(|layer| layer.size).sum();
        let id = image.id.to_string();
        let count = containers.iter().filter(|container| container.image == id).count();
        let name = image.references.first().or(image.digests.first());
        let tag = image.references.first().and_then(|reference| reference.tag());
        json!({
            "Repository": name.map_or_else(|| "<none>".into(), repository), "Tag": tag.unwrap_or("<none>"),
            "ID": short(image), "CreatedSince": age(image.created.as_deref()),
            "CreatedAt": date_of(image.created.as_deref()),
            "Size": size(image.size), "SharedSize": size(shared),
            "UniqueSize": size(image.size.saturating_sub(shared)), "Containers": count.to_string(),
        })
    };
    images.iter().map(row).collect()
}

fn verbose(images: &[Image], containers: &[ContainerUse], volumes: &[VolumeUse]) -> String {
    let table = |columns: &[Column], rows: &[Value]| {
        let shown: Vec<&str> = columns.iter().map(|(field, _)| *field).collect();
        // The command's own table has no template that could fail.
        Format::Table(None).list(columns, &shown, rows).unwrap_or_default()
    };
    let rows: Vec<Value> = containers.iter().map(|container| container.row.clone()).collect();
    let volumes: Vec<Value> = volumes.iter().map(VolumeUse::fields).collect();
    format!(
        "Images space usage:\n\n{}\nContainers space usage:\n\n{}\nLocal Volumes space usage:\n\n{}",
        table(IMAGES, &image_rows(images, containers)),
        table(CONTAINERS, &rows),
        table(VOLUMES, &volumes)
    )
}

#[cfg(test)]
mod tests {
    use super::super::prune::tests::{container, two_images};
    use super::*;

    #[test]
    fn containers_make_images_active() {
        let (_directory, images) = two_images();
        let containers = [container(&images[0], true), container(&images[0], false)];
        let row = images_row(&images, &containers, 0);
        assert_eq!((&row["TotalCount"], &row["Active"]), (&json!("2"), &json!("1")));
        assert_eq!((&row["Size"], &row["Reclaimable"]), (&json!("4.1kB"), &json!("2.05kB (50%)")));
        let row = images_row(&images, &[], 1000);
        assert_eq!((&row["Size"], &row["Reclaimable"]), (&json!("5.1kB"), &json!("5.1kB (100%)")));
        let row = containers_row(&containers);
        assert_eq!((&row["TotalCount"], &row["Active"]), (&json!("2"), &json!("1")));
        assert_eq!((&row["Size"], &row["Reclaimable"]), (&json!("2kB"), &json!("1kB (50%)")));
        let rows = image_rows(&images, &containers);
        assert_eq!((&rows[0]["Containers"], &rows[1]["Containers"]), (&json!("2"), &json!("0")));
        assert_eq!((&rows[0]["SharedSize"], &rows[0]["UniqueSize"]), (&json!("0B"), &json!("2.05kB")));
        assert!(verbose(&images, &containers, &[]).contains("web"));
        let row = volumes_row(&[]);
        assert_eq!((&row["TotalCount"], &row["Reclaimable"]), (&json!("0"), &json!("0B")));
    }
}
