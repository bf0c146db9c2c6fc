//! `mvm volume prune`.

use clap::Args;

use super::list::chosen;
use super::{all, check_known, is_anonymous, remove};
use crate::complaint::{Complaint, complete};
use crate::events;
use crate::format::{Filter, Filters};
use crate::process::ExitCode;
use crate::prune::{deleted, prune};

const EXAMPLES: &str = "\
Examples:
  mvm volume prune --force
  mvm volume prune --all --filter label!=keep

Filters: all=true|false, label=KEY[=VALUE], label!=KEY[=VALUE].";

const FILTERS: &[&str] = &["all", "label", "label!"];

/// Arguments of `mvm volume prune`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct PruneCommand {
    /// Remove all that no container uses, not only anonymous ones
    #[arg(long, short)]
    all: bool,

    /// Remove only volumes that fit, as in label!=keep
    #[arg(long, value_name = "FILTER")]
    filter: Vec<Filter>,

    /// Do not ask
    #[arg(long, short)]
    force: bool,
}

impl PruneCommand {
    /// Removes volumes that no container uses.
    pub fn run(self) -> ExitCode {
        complete(self.prune())
    }

    fn prune(self) -> Result<ExitCode, Complaint> {
        let filters = Filters::new(&self.filter, FILTERS)?;
        let all_of_them = self.all || filters.flag("all")? == Some(true);
        let which = if all_of_them { "all" } else { "anonymous" };
        let warning =
            format!("WARNING! This will remove {which} local volumes not used by at least one container.\n");
        prune(self.force, &warning, || remove_all(&filters, all_of_them))
    }
}

/// Removes volumes that fit `filters` and that nothing uses, unless `all_of_them` the anonymous ones. What there is to
/// say of it, and how many bytes that has freed.
fn remove_all(filters: &Filters, all_of_them: bool) -> Result<(String, u64), Complaint> {
    check_known()?;
    let (mut removed, mut freed) = (String::new(), 0_u64);
    for one in chosen(all()?, filters)? {
        let is_meant = all_of_them || is_anonymous(&one.volume.record);
        // One that a container has meanwhile stays.
        if is_meant && one.links == 0 && remove(&one.volume.record.name).is_ok() {
            removed += &format!("{}\n", one.volume.record.name);
            freed = freed.saturating_add(one.size);
        }
    }
    events::note_prune("volume", freed);
    Ok((deleted("Volumes", &removed), freed))
}
