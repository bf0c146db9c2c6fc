//! `mvm volume inspect`.

use std::time::Duration;

use clap::Args;
use instance::{Volume, VolumeName, time};
use serde_json::{Value, json};

use super::{is_anonymous, volumes};
use crate::chain;
use crate::format::Format;
use crate::inspect::print_all;
use crate::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  mvm volume inspect data
  mvm volume inspect --format '{{.Mountpoint}}' data";

/// Arguments of `mvm volume inspect`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct InspectCommand {
    /// Print json or a Go template
    #[arg(long, short, value_name = "FORMAT")]
    format: Option<Format>,

    /// Their names
    #[arg(required = true, value_name = "NAME")]
    names: Vec<VolumeName>,
}

/// All that is known of a volume, by docker's names.
pub fn value(volume: &Volume) -> Value {
    let record = &volume.record;
    let options = (!record.options.is_empty()).then_some(&record.options);
    json!({
        "CreatedAt": time::rfc3339(Duration::from_millis(record.created)),
        "Driver": record.driver.as_str(),
        "Labels": record.labels,
        "Mountpoint": volume.content(),
        "Name": record.name,
        "Options": options,
        "Scope": "local",
        "Anonymous": is_anonymous(record),
    })
}

impl InspectCommand {
    /// Shows all that is known of volumes. Those that exist are shown where others do not.
    pub fn run(self) -> ExitCode {
        print_all(self.format.as_ref(), &self.names, |name| {
            volumes()?.find(name).map(|volume| value(&volume)).map_err(|error| chain(&error))
        })
    }
}
