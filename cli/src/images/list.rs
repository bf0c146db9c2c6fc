//! `mvm images`.

use clap::Args;
use image::{Image, Reference};
use instance::time;
use serde::Serialize;
use serde_json::{Value, json};

use super::human::{age, date_of, size};
use super::pattern::names;
use super::store;
use crate::complaint::{Complaint, complete};
use crate::format::{Column, Filter, Filters, Format, fitted_table, invalid};
use crate::process::ExitCode;
use crate::table::{self, Cut};
use crate::{chain, exit_code, print};

const EXAMPLES: &str = "\
Examples:
  mvm images
  mvm images alpine
  mvm images --filter dangling=true --filter before=alpine
  mvm images --format '{{.ID}} {{.Repository}}:{{.Tag}}'
  mvm rmi $(mvm images --quiet)

Filters: before=IMAGE, dangling=true|false, label=KEY[=VALUE],
reference=PATTERN, since=IMAGE, until=TIME.
Fields of templates: ID, Repository, Tag, Digest, CreatedSince, CreatedAt,
Size, Containers, SharedSize, UniqueSize, VirtualSize.";

const FILTERS: &[&str] = &["before", "dangling", "label", "label!", "reference", "since", "until"];

const COLUMNS: &[Column] = &[
    ("ID", "IMAGE ID"),
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("Digest", "DIGEST"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("Size", "SIZE"),
    ("Containers", "CONTAINERS"),
    ("SharedSize", "SHARED SIZE"),
    ("UniqueSize", "UNIQUE SIZE"),
    ("VirtualSize", "VIRTUAL SIZE"),
];

/// What stands for what an image does not have.
const NONE: &str = "<none>";

/// Arguments of `mvm images`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct ImagesCommand {
    /// List all images, as is done anyway
    #[arg(long, short)]
    all: bool,

    /// List only images that fit, as in dangling=true
    #[arg(long, short, value_name = "FILTER")]
    filter: Vec<Filter>,

    /// Print json, "table TEMPLATE" or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,

    /// Print JSON
    ///
    /// An array with an object for each image. `--format json` prints what docker does.
    #[arg(long, conflicts_with = "format")]
    json: bool,

    /// Print only IDs
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,

    /// Print digests as well
    #[arg(long, conflicts_with = "json")]
    digests: bool,

    /// Print whole IDs, and names that a terminal has no room for
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
pub fn short(image: &Image) -> String {
    image.id.hex().chars().take(12).collect()
}

impl ImagesCommand {
    /// Lists images.
    pub fn run(self) -> ExitCode {
        complete(self.list())
    }

    fn list(self) -> Result<ExitCode, Complaint> {
        let mut given = self.filter.clone();
        given.extend(self.name.clone().map(|value| Filter { name: "reference".into(), value }));
        let filters = Filters::new(&given, FILTERS)?;
        let images = store()?.images().map_err(|error| chain(&error))?;
        let images = chosen(images, &filters)?;
        if self.json {
            let rows: Vec<Row> = images.iter().map(row).collect();
            return Ok(print(crate::json(&rows).as_bytes(), exit_code::SUCCESS));
        }
        let format = self.format.clone().unwrap_or(Format::Table(None));
        if self.quiet && format.is_default() {
            let id = |image: &Image| if self.no_trunc { image.id.to_string() } else { short(image) };
            let ids: String = images.iter().map(|image| id(image) + "\n").collect();
            return Ok(print(ids.as_bytes(), exit_code::SUCCESS));
        }
        let patterns: Vec<&str> = filters.values("reference").collect();
        let rows: Vec<Value> =
            images.iter().flat_map(|image| rows(image, &patterns, self.digests, self.no_trunc)).collect();
        let shown: &[&str] = match self.digests {
            true => &["Repository", "Tag", "Digest", "ID", "CreatedSince", "Size"],
            false => &["Repository", "Tag", "ID", "CreatedSince", "Size"],
        };
        let text = match format.is_default() {
            true => table(shown, &rows, if self.no_trunc { None } else { table::terminal_width() }),
            false => format.list(COLUMNS, shown, &rows)?,
        };
        Ok(print(text.as_bytes(), exit_code::SUCCESS))
    }
}

/// The table without a form. On a terminal names are cut where they do not fit.
fn table(shown: &[&str], rows: &[Value], width: Option<usize>) -> String {
    let cut = |field: &str| match field {
        "Repository" => Some(Cut::Start),
        "Tag" => Some(Cut::End),
        _ => None,
    };
    let shown: Vec<_> = shown.iter().map(|field| (*field, cut(field))).collect();
    fitted_table(COLUMNS, &shown, rows, width, &["CreatedSince", "Size"])
}

/// The images that all filters allow, those that were built last first.
pub fn chosen(mut images: Vec<Image>, filters: &Filters) -> Result<Vec<Image>, Complaint> {
    let dangling = filters.flag("dangling")?;
    let mut before = Vec::new();
    let mut since = Vec::new();
    for (name, times) in [("before", &mut before), ("since", &mut since)] {
        for value in filters.values(name) {
            let image = store()?.resolve(value).map_err(|error| chain(&error))?;
            let image = image.ok_or_else(|| super::missing(value))?;
            times.push(created(&image));
        }
    }
    for value in filters.values("until") {
        let time = time::parse_point(value, time::since_1970());
        let time = time.ok_or_else(|| invalid("until", value, "a time, or a duration such as 24h"))?;
        before.push(i64::try_from(time.as_secs()).unwrap_or(i64::MAX));
    }
    images.retain(|image| {
        let at = created(image);
        let label = |key: &str| label(image, key);
        dangling.is_none_or(|dangling| dangling == is_dangling(image))
            && before.iter().all(|before| at < *before)
            && since.iter().all(|since| at > *since)
            && filters.allow_labels(label)
            && filters.allow_without_labels(label)
            && filters.allow("reference", |pattern| {
                image.references.iter().chain(&image.digests).any(|reference| names(pattern, reference))
            })
    });
    Ok(images)
}

/// Whether no reference names the image.
pub fn is_dangling(image: &Image) -> bool {
    image.references.is_empty() && image.digests.is_empty()
}

/// When the image was built, in seconds since 1970; 0 where it does not say.
fn created(image: &Image) -> i64 {
    image.created.as_deref().and_then(time::parse_seconds).unwrap_or(0)
}

fn label<'a>(image: &'a Image, key: &str) -> Option<&'a str> {
    let labels = image.config.config().as_ref()?.labels().as_ref()?;
    labels.get(key).map(String::as_str)
}

/// The rows of an image: one for each reference that fits a pattern.
fn rows(image: &Image, patterns: &[&str], with_digests: bool, whole: bool) -> Vec<Value> {
    let is_wanted = |reference: &&Reference| {
        patterns.is_empty() || patterns.iter().any(|pattern| names(pattern, reference))
    };
    let mut names: Vec<(String, String, String)> = Vec::new();
    for reference in image.references.iter().filter(is_wanted) {
        let name = repository(reference);
        let tag = reference.tag().unwrap_or(NONE).to_owned();
        let of_name = image.digests.iter().filter(|digest| repository(digest) == name);
        let digests: Vec<String> = of_name.filter_map(|digest| Some(digest.digest()?.to_string())).collect();
        match digests.is_empty() || !with_digests {
            true => {
                let digest = digests.first().cloned().unwrap_or_else(|| NONE.into());
                names.push((name, tag, digest));
            }
            false => {
                names.extend(digests.into_iter().map(|digest| (name.clone(), tag.clone(), digest)));
            }
        }
    }
    if image.references.is_empty() {
        for reference in image.digests.iter().filter(is_wanted) {
            let digest = reference.digest().map_or_else(|| NONE.into(), |digest| digest.to_string());
            names.push((repository(reference), NONE.into(), digest));
        }
    }
    if is_dangling(image) && patterns.is_empty() {
        names.push((NONE.into(), NONE.into(), NONE.into()));
    }
    let id = if whole { image.id.to_string() } else { short(image) };
    let size = size(image.size);
    let at = date_of(image.created.as_deref());
    let since = age(image.created.as_deref());
    let row = |(repository, tag, digest): (String, String, String)| {
        json!({
            "ID": id, "Repository": repository, "Tag": tag, "Digest": digest, "CreatedSince": since, "CreatedAt": at,
            "Size": size, "VirtualSize": size, "Containers": "N/A", "SharedSize": "N/A", "UniqueSize": "N/A",
        })
    };
    names.into_iter().map(row).collect()
}

/// A reference without tag and digest, as users write it.
pub fn repository(reference: &Reference) -> String {
    let text = reference.to_string();
    let text = text.split_once('@').map_or(text.as_str(), |(name, _)| name);
    let suffix = reference.tag().map(|tag| format!(":{tag}")).unwrap_or_default();
    text.strip_suffix(&suffix).unwrap_or(text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_fits_a_terminal() {
        let row = json!({
            "ID": "0123456789ab", "Repository": format!("registry.lan/{}", "n".repeat(60)), "Tag": "t".repeat(60),
            "Digest": format!("sha256:{}", "d".repeat(64)), "CreatedSince": "10 months ago", "Size": "100.5MB",
        });
        let shown = ["Repository", "Tag", "ID", "CreatedSince", "Size"];
        for width in 60..200 {
            let text = table(&shown, std::slice::from_ref(&row), Some(width));
            assert!(text.lines().all(|line| line.chars().count() <= width), "{width}: {text}");
            assert!(text.contains("0123456789ab"), "{width}: {text}");
        }
        let whole = table(&shown, std::slice::from_ref(&row), None);
        assert!(whole.contains(&"n".repeat(60)) && whole.contains(&"t".repeat(60)), "{whole}");
    }
}
