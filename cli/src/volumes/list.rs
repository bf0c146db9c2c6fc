//! `mvm volume ls`.

use clap::Args;
use serde_json::Value;

use super::{VolumeUse, all};
use crate::complaint::{Complaint, complete};
use crate::format::{Column, Filter, Filters, Format, invalid, matches_name};
use crate::process::ExitCode;
use crate::{exit_code, print};

const EXAMPLES: &str = "\
Examples:
  mvm volume ls
  mvm volume ls --filter dangling=true --quiet
  mvm volume ls --format '{{.Name}} {{.Size}}'

Filters: dangling=true|false, driver=local|shared, label=KEY[=VALUE],
label!=KEY[=VALUE], name=TEXT.
Fields of templates: Driver, Name, Mountpoint, Scope, Labels, Links, Size,
Availability, Group, Status.";

const FILTERS: &[&str] = &["dangling", "driver", "label", "label!", "name"];

/// The fields of `--format`, and the headings of their columns.
const COLUMNS: &[Column] = &[
    ("Driver", "DRIVER"),
    ("Name", "VOLUME NAME"),
    ("Mountpoint", "MOUNTPOINT"),
    ("Scope", "SCOPE"),
    ("Labels", "LABELS"),
    ("Links", "LINKS"),
    ("Size", "SIZE"),
    ("Availability", "AVAILABILITY"),
    ("Group", "GROUP"),
    ("Status", "STATUS"),
];

/// Arguments of `mvm volume ls`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct ListCommand {
    /// List only volumes that fit, as in dangling=true
    #[arg(long, short, value_name = "FILTER")]
    filter: Vec<Filter>,

    /// Print json, "table TEMPLATE" or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,

    /// Print only names
    #[arg(long, short)]
    quiet: bool,
}

impl ListCommand {
    /// Lists volumes.
    pub fn run(self) -> ExitCode {
        complete(self.list())
    }

    fn list(self) -> Result<ExitCode, Complaint> {
        let filters = Filters::new(&self.filter, FILTERS)?;
        let volumes = chosen(all()?, &filters)?;
        let format = self.format.unwrap_or(Format::Table(None));
        if self.quiet && format.is_default() {
            let names: String = volumes.iter().map(|one| format!("{}\n", one.volume.record.name)).collect();
            return Ok(print(names.as_bytes(), exit_code::SUCCESS));
        }
        let rows: Vec<Value> = volumes.iter().map(VolumeUse::fields).collect();
        let text = format.list(COLUMNS, &["Driver", "Name"], &rows)?;
        Ok(print(text.as_bytes(), exit_code::SUCCESS))
    }
}

/// Those that all filters allow.
///
/// # Errors
///
/// A [`Complaint`]: a value that a filter does not take.
pub fn chosen(mut volumes: Vec<VolumeUse>, filters: &Filters) -> Result<Vec<VolumeUse>, Complaint> {
    let dangling = filters.flag("dangling")?;
    for driver in filters.values("driver") {
        if !["local", "shared"].contains(&driver) {
            return Err(invalid("driver", driver, "local or shared").into());
        }
    }
    volumes.retain(|one| {
        let record = &one.volume.record;
        let label = |name: &str| record.labels.get(name).map(String::as_str);
        dangling.is_none_or(|dangling| dangling == (one.links == 0))
            && filters.allow("driver", |driver| record.driver.as_str() == driver)
            && filters.allow("name", |name| matches_name(name, record.name.as_str()))
            && filters.allow_labels(label)
            && filters.allow_without_labels(label)
    });
    Ok(volumes)
}
