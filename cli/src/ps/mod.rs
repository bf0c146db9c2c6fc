//! `mvm ps`.

mod filter;
mod item;

use std::str::FromStr;

use clap::Args;
use serde_json::Value;

pub use self::item::{Item, items};

use self::filter::{FILTERS, fits};
use crate::complaint::{Complaint, complete};
use crate::format::{Column, Filter, Filters, Format, FormatError, fitted_table};
use crate::images::{self, human};
use crate::process::ExitCode;
use crate::table::{self, Cut};
use crate::{chain, complain, exit_code, print};

const EXAMPLES: &str = "\
Examples:
  mvm ps
  mvm ps --all
  mvm stop $(mvm ps --quiet)
  mvm ps --filter status=exited --format '{{.ID}} {{.Status}}'
  mvm ps --json | jq -r '.[].control_socket'";

/// The fields of `--format`, and the headings of their columns.
const COLUMNS: &[Column] = &[
    ("ID", "ID"),
    ("Names", "NAMES"),
    ("Kind", "KIND"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("CreatedAt", "CREATED AT"),
    ("RunningFor", "CREATED"),
    ("Status", "STATUS"),
    ("State", "STATE"),
    ("Ports", "PORTS"),
    ("Labels", "LABELS"),
    ("Mounts", "MOUNTS"),
    ("LocalVolumes", "LOCAL VOLUMES"),
    ("Networks", "NETWORKS"),
    ("Size", "SIZE"),
    ("Pod", "POD ID"),
    ("PodName", "PODNAME"),
];

/// Arguments of `mvm ps`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct PsCommand {
    /// List those that have ended too
    #[arg(long, short)]
    all: bool,

    /// List the last ones that were made, whether they run or not: so many
    #[arg(long, short = 'n', value_name = "N", hide_short_help = true)]
    last: Option<usize>,

    /// List the last one that was made
    #[arg(long, short, conflicts_with = "last", hide_short_help = true)]
    latest: bool,

    /// Show how much disk space each has written, and with its image
    #[arg(long, short, hide_short_help = true)]
    size: bool,

    /// List some only: NAME=VALUE
    ///
    /// Names are id, name, kind, status, health, exited, ancestor, label, before, since, volume and network. May be
    /// given more than once. In a name ^ is its beginning and $ its end.
    #[arg(long, short, value_name = "FILTER")]
    filter: Vec<Filter>,

    /// Print in a form: json, table, or a Go template
    ///
    /// Such as '{{.ID}} {{.Names}}' or 'table {{.ID}}\t{{.Status}}'. Fields are ID, Names, Kind, Image, Command,
    /// CreatedAt, RunningFor, Status, State, Ports, Labels, Mounts, LocalVolumes, Networks, Size, Pod and PodName.
    #[arg(long, value_name = "FORM", conflicts_with_all = ["json", "quiet"])]
    format: Option<ListFormat>,

    /// Show the pods that they are in
    #[arg(long, short, conflicts_with_all = ["json", "quiet"])]
    pod: bool,

    /// Print JSON
    ///
    /// An array with an object for each.
    #[arg(long)]
    json: bool,

    /// Print only IDs
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,

    /// Do not shorten the table to the terminal's width
    ///
    /// On a terminal, what does not fit is cut. Output to a file or pipe is cut at commands only.
    #[arg(long, conflicts_with = "json")]
    no_trunc: bool,
}

/// A form, and whether it names the size, which takes a while to find out.
#[derive(Clone)]
struct ListFormat {
    format: Format,
    names_size: bool,
}

impl FromStr for ListFormat {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        Ok(Self { format: text.parse()?, names_size: text.contains(".Size") })
    }
}

impl PsCommand {
    /// Lists this user's VMs and containers.
    pub fn run(self) -> ExitCode {
        complete(self.text().map(|text| print(text.as_bytes(), exit_code::SUCCESS)))
    }

    fn text(&self) -> Result<String, Complaint> {
        let filters = Filters::new(&self.filter, FILTERS)?;
        let last = self.last.or(self.latest.then_some(1));
        // A filter of states is about those that have ended, too.
        let all = self.all
            || last.is_some()
            || self.filter.iter().any(|filter| matches!(&*filter.name, "status" | "exited"));
        let (mut items, damaged) = items(all).map_err(|error| Complaint::host(&error))?;
        for error in damaged {
            complain(&chain(&error));
        }
        let fits = fits(&filters, &items)?;
        let mut fits = fits.into_iter();
        items.retain(|_| fits.next().unwrap_or_default());
        // The newest first, as docker.
        items.reverse();
        items.truncate(last.unwrap_or(usize::MAX));
        if self.quiet {
            return Ok(items.iter().map(|item| item.id() + "\n").collect());
        }
        if self.json {
            return Ok(crate::json(&items.iter().map(Item::json).collect::<Vec<_>>()));
        }
        let mut rows: Vec<Value> = items.iter().map(|item| item.fields(self.no_trunc)).collect();
        if self.size || self.format.as_ref().is_some_and(|format| format.names_size) {
            add_sizes(&items, &mut rows);
        }
        match &self.format {
            Some(ListFormat { format, .. }) if !format.is_default() => {
                Ok(format.list(COLUMNS, &[], &rows)?)
            }
            _ => {
                let width = if self.no_trunc { None } else { table::terminal_width() };
                Ok(table(rows, width, self.size, self.pod))
            }
        }
    }
}

/// Adds what each has written, and how much that is with its image.
fn add_sizes(items: &[Item], rows: &mut [Value]) {
    let images = images::sizes();
    for (item, row) in items.iter().zip(rows) {
        let own = item.disk_usage();
        let id = item.entry.as_ref().and_then(|entry| entry.image_id.as_ref());
        let size = match id.and_then(|id| images.get(id)) {
            Some(image) => {
                format!("{} (virtual {})", human::size(own), human::size(own.saturating_add(*image)))
            }
            None => human::size(own),
        };
        if let Some(row) = row.as_object_mut() {
            row.insert("Size".into(), size.into());
        }
    }
}

fn table(mut rows: Vec<Value>, width: Option<usize>, has_size: bool, with_pods: bool) -> String {
    let mut shown = vec!["ID", "Kind", "Names", "Status", "Image", "Command", "RunningFor", "Ports"];
    if has_size {
        shown.push("Size");
    }
    if with_pods {
        shown.extend(["Pod", "PodName"]);
    }
    let cut = |field| match field {
        "Image" => Some(Cut::Start),
        "Names" | "Command" | "RunningFor" | "Ports" | "PodName" => Some(Cut::End),
        _ => None,
    };
    let shown: Vec<_> = shown.into_iter().map(|field| (field, cut(field))).collect();
    for name in rows.iter_mut().filter_map(|row| row.get_mut("Names")) {
        if name.as_str() == Some("") {
            *name = "-".into();
        }
    }
    // What was asked for by an option stays.
    fitted_table(COLUMNS, &shown, &rows, width, &["Ports", "RunningFor", "Command", "Image", "Kind"])
}
