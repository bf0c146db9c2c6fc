//! `mvm images` and `mvm history`.

use clap::Args;
use image::Image;
use serde::Serialize;

use super::human::{age, size};
use super::{complete, store};
use crate::process::ExitCode;
use crate::table::Table;
use crate::{chain, exit_code, print};

const LIST_EXAMPLES: &str = "\
Examples:
  mvm images
  mvm images alpine
  mvm rmi $(mvm images --quiet)";

/// Arguments of `mvm images`.
#[derive(Args)]
#[command(after_long_help = LIST_EXAMPLES)]
pub struct ImagesCommand {
    /// Print JSON
    ///
    /// An array with an object for each image.
    #[arg(long)]
    json: bool,

    /// Print only IDs
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,

    /// Print whole IDs
    #[arg(long)]
    no_trunc: bool,

    /// List only images of this name
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

/// An image as `mvm images --json` shows it.
#[derive(Serialize)]
struct Row {
    id: String,
    references: Vec<String>,
    digests: Vec<String>,
    created: Option<String>,
    size_bytes: u64,
    layers: usize,
}

fn row(image: &Image) -> Row {
    Row {
        id: image.id.to_string(),
        references: image.references.iter().map(ToString::to_string).collect(),
        digests: image.digests.iter().map(ToString::to_string).collect(),
        created: image.created.clone(),
        size_bytes: image.size,
        layers: image.layers.len(),
    }
}

/// The first 12 digits, as docker shows an ID.
fn short(image: &Image) -> String {
    image.id.hex().chars().take(12).collect()
}

impl ImagesCommand {
    /// Lists images.
    pub fn run(self) -> ExitCode {
        complete(self.list())
    }

    fn list(self) -> Result<ExitCode, String> {
        let mut images = store()?.images().map_err(|error| chain(&error))?;
        if let Some(name) = &self.name {
            images.retain(|image| image.references.iter().any(|reference| is_named(reference, name)));
        }
        // The latest first.
        images.sort_by(|one, other| other.created.cmp(&one.created));
        let id = |image: &Image| if self.no_trunc { image.id.to_string() } else { short(image) };
        if self.json {
            let rows: Vec<Row> = images.iter().map(row).collect();
            return Ok(print(crate::json(&rows).as_bytes(), exit_code::SUCCESS));
        }
        if self.quiet {
            let ids: String = images.iter().map(|image| id(image) + "\n").collect();
            return Ok(print(ids.as_bytes(), exit_code::SUCCESS));
        }
        let mut table = Table::new(&["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"]);
        for image in &images {
            let mut names: Vec<(String, String)> = image
                .references
                .iter()
                .filter(|reference| self.name.as_deref().is_none_or(|name| is_named(reference, name)))
                .map(|reference| {
                    let text = reference.to_string();
                    let tag = reference.tag().unwrap_or("<none>").to_owned();
                    (text.strip_suffix(&format!(":{tag}")).unwrap_or(&text).to_owned(), tag)
                })
                .collect();
            if names.is_empty() {
                names.push(("<none>".into(), "<none>".into()));
            }
            for (name, tag) in names {
                table.row([name, tag, id(image), age(image.created.as_deref()), size(image.size)]);
            }
        }
        Ok(print(table.to_string().as_bytes(), exit_code::SUCCESS))
    }
}

/// Whether `name` means the reference, with or without a tag.
fn is_named(reference: &image::Reference, name: &str) -> bool {
    let text = reference.to_string();
    text == name || text.strip_prefix(name).is_some_and(|rest| rest.starts_with(':'))
}

const HISTORY_EXAMPLES: &str = "\
Examples:
  mvm history --no-trunc alpine";

/// Arguments of `mvm history`.
#[derive(Args)]
#[command(after_long_help = HISTORY_EXAMPLES)]
pub struct HistoryCommand {
    /// Print whole commands
    #[arg(long)]
    no_trunc: bool,

    /// The image
    image: String,
}

impl HistoryCommand {
    /// Shows how an image was made, the last step first.
    pub fn run(self) -> ExitCode {
        complete(self.show())
    }

    fn show(self) -> Result<ExitCode, String> {
        let found = store()?.resolve(&self.image).map_err(|error| chain(&error))?;
        let image = found.ok_or_else(|| super::missing(&self.image))?;
        let mut table = Table::new(&["IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"]);
        for (index, step) in image.history().into_iter().rev().enumerate() {
            let id = if index == 0 { short(&image) } else { "<missing>".into() };
            let by = step.created_by.unwrap_or_default();
            let by = if self.no_trunc || by.chars().count() <= 45 {
                by
            } else {
                by.chars().take(44).chain(['…']).collect()
            };
            let comment = step.comment.unwrap_or_default();
            table.row([id, age(step.created.as_deref()), by, size(step.size), comment]);
        }
        Ok(print(table.to_string().as_bytes(), exit_code::SUCCESS))
    }
}
