//! `mvm volume inspect`.

use std::time::Duration;

use clap::Args;
use instance::{Volume, VolumeName, time};
use serde_json::{Value, json};

use super::volumes;
use crate::format::Format;
use crate::process::ExitCode;
use crate::{chain, complain, exit_code, print};

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
        "Anonymous": record.is_anonymous,
    })
}

impl InspectCommand {
    /// Shows all that is known of volumes. Those that exist are shown where others do not.
    pub fn run(self) -> ExitCode {
        let (mut code, mut found) = (exit_code::SUCCESS, Vec::new());
        for name in &self.names {
            match volumes().and_then(|volumes| volumes.find(name).map_err(|error| chain(&error))) {
                Ok(volume) => found.push(value(&volume)),
                Err(line) => {
                    complain(&line);
                    code = exit_code::FAILURE;
                }
            }
        }
        match Format::inspect(self.format.as_ref(), &found) {
            Ok(text) => print(text.as_bytes(), code),
            Err(error) => {
                complain(&error.to_string());
                exit_code::FAILURE.into()
            }
        }
    }
}
