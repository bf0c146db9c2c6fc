//! `mvm container prune` and `mvm system prune`.

use clap::Args;
use instance::{Archive, Kind, time};

use crate::complaint::{Complaint, complete};
use crate::format::{Filter, Filters, invalid};
use crate::images;
use crate::process::ExitCode;
use crate::prune::{deleted, prune};
use crate::ps::{Item, items};
use crate::{chain, complain, events};

const EXAMPLES: &str = "\
Examples:
  mvm container prune
  mvm container prune --force --filter until=24h

Filters: label=KEY[=VALUE], label!=KEY[=VALUE], until=TIME.";

const SYSTEM_EXAMPLES: &str = "\
Examples:
  mvm system prune
  mvm system prune --all --force --filter until=240h

Filters: label=KEY[=VALUE], label!=KEY[=VALUE], until=TIME.";

const FILTERS: &[&str] = &["label", "label!", "until"];

/// Arguments of `mvm container prune`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct PruneCommand {
    /// Remove only those that fit, as in until=24h
    #[arg(long, value_name = "FILTER")]
    filter: Vec<Filter>,

    /// Do not ask
    #[arg(long, short)]
    force: bool,
}

/// Arguments of `mvm system prune`.
#[derive(Args)]
#[command(after_long_help = SYSTEM_EXAMPLES)]
pub struct SystemPruneCommand {
    /// Remove all images that no container uses, not only those without a name
    #[arg(long, short)]
    all: bool,

    /// Remove only what fits, as in until=24h
    #[arg(long, value_name = "FILTER")]
    filter: Vec<Filter>,

    /// Do not ask
    #[arg(long, short)]
    force: bool,
}

impl PruneCommand {
    /// Removes all containers that do not run.
    pub fn run(self) -> ExitCode {
        complete(self.prune())
    }

    fn prune(self) -> Result<ExitCode, Complaint> {
        let filters = Filters::new(&self.filter, FILTERS)?;
        let question = "WARNING! This will remove all stopped containers.\n";
        prune(self.force, question, || remove(&filters))
    }
}

impl SystemPruneCommand {
    /// Removes all containers that do not run, and images that nothing uses then.
    pub fn run(self) -> ExitCode {
        complete(self.prune())
    }

    fn prune(self) -> Result<ExitCode, Complaint> {
        let filters = Filters::new(&self.filter, FILTERS)?;
        let which = images::which(self.all);
        let question = format!("WARNING! This will remove:\n  - all stopped containers\n  - {which}\n\n");
        prune(self.force, &question, || {
            let (said, freed) = remove(&filters)?;
            let (said_of_images, freed_of_images) = images::prune(&filters, self.all)?;
            Ok((said + &said_of_images, freed.saturating_add(freed_of_images)))
        })
    }
}

/// Removes containers that do not run and fit; what there is to say of it, and how many bytes that has freed.
fn remove(filters: &Filters) -> Result<(String, u64), Complaint> {
    let mut before = u64::MAX;
    for value in filters.values("until") {
        let time = time::parse_point(value, time::since_1970());
        let time = time.ok_or_else(|| invalid("until", value, "a time, or a duration such as 24h"))?;
        before = before.min(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    }
    let (items, damaged) = items(true).map_err(|error| chain(&error))?;
    for error in damaged {
        complain(&chain(&error));
    }
    let archive = Archive::of_user().map_err(|error| chain(&error))?;
    let fits = |item: &&Item| {
        item.kind() == Kind::Container
            && !item.is_running()
            && item.created() < before
            && filters.allow_labels(|name| item.label(name))
            && filters.allow_without_labels(|name| item.label(name))
    };
    let (mut said, mut freed) = (String::new(), 0_u64);
    for item in items.iter().filter(fits) {
        let Some(entry) = &item.entry else { continue };
        let size = item.disk_usage();
        match archive.remove(&entry.id, false) {
            Ok(true) => {
                events::note(entry, "destroy", &[]);
                said += &format!("{}\n", entry.id);
                freed = freed.saturating_add(size);
            }
            // It was started meanwhile.
            Ok(false) => {}
            Err(error) => complain(&chain(&error)),
        }
    }
    events::note_prune("container", freed);
    Ok((deleted("Containers", &said), freed))
}
