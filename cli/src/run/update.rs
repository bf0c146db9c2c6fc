//! `mvm update`.

use clap::Args;
use container::{CpuSet, Update};
use instance::{Archive, InstanceError, Kind, Registry};
use vmm::MemorySize;

use super::details;
use super::docker::QuotaArguments;
use super::order::Order;
use super::policy::RestartPolicy;
use super::resources::{Swap, milli_cpus, note, swap};
use crate::process::ExitCode;
use crate::targets::{self, Failure};
use crate::values::check_memory;
use crate::{chain, complain, events, exit_code};

const EXAMPLES: &str = "\
Examples:
  mvm update --memory 256m --cpus 1 web
  mvm update --restart unless-stopped web db";

/// Arguments of `mvm update`, which are those of `docker update`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct UpdateCommand {
    /// IDs, beginnings of IDs, or names
    #[arg(required = true, value_name = "NAME")]
    containers: Vec<String>,

    /// Limit memory, as in 512m: for one that runs, up to what its VM has
    #[arg(long, short, value_name = "SIZE")]
    memory: Option<MemorySize>,

    /// Limit processor time, as in 1.5: for one that runs, up to what its VM has
    #[arg(long, value_name = "N", value_parser = milli_cpus)]
    cpus: Option<u64>,

    #[command(flatten)]
    quota: QuotaArguments,

    /// Limit memory and swap: the same as --memory, as the VM has no swap
    #[arg(long, value_name = "SIZE", value_parser = swap, allow_negative_numbers = true, hide = true)]
    memory_swap: Option<Swap>,

    /// Limit processes and threads; -1 for any number
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pids_limit: Option<i64>,

    /// Set the share of the processors beside other control groups: 2 to 262144
    #[arg(long, short, value_name = "N")]
    cpu_shares: Option<u64>,

    /// Use these CPUs of the VM, as in 0-2,5
    #[arg(long, value_name = "CPUS")]
    cpuset_cpus: Option<CpuSet>,

    /// Keep this much memory when the VM runs short of it
    #[arg(long, value_name = "SIZE")]
    memory_reservation: Option<MemorySize>,

    /// Start it again when it ends: no, on-failure, on-failure:TIMES, always or unless-stopped
    #[arg(long, value_name = "POLICY")]
    restart: Option<RestartPolicy>,
}

impl UpdateCommand {
    /// Changes what containers may use, whether they run or not.
    pub fn run(self) -> ExitCode {
        let milli_cpus = match self.quota.milli_cpus(self.cpus) {
            Ok(None) if self.quota.is_unlimited() => Some(u64::MAX),
            Ok(milli_cpus) => milli_cpus,
            Err(line) => {
                complain(&line);
                return exit_code::USAGE.into();
            }
        };
        let update = Update {
            memory: self.memory.map(MemorySize::bytes),
            milli_cpus,
            cpu_shares: self.cpu_shares,
            pids: self
                .pids_limit
                .map(|most| u64::try_from(most).ok().filter(|most| *most > 0).unwrap_or(u64::MAX)),
            cpu_set: self.cpuset_cpus,
            memory_reservation: self.memory_reservation.map(MemorySize::bytes),
        };
        let is_empty = update.is_empty() && self.restart.is_none();
        // It says that there is no swap, which is so anyway.
        if is_empty && self.memory_swap.is_none() {
            complain("nothing to update: give an option, as in --memory 512m; see `mvm update --help`");
            return exit_code::USAGE.into();
        }
        let swap = self.memory_swap;
        targets::each_word(&self.containers, |word| change(word, &update, swap, self.restart))
    }
}

fn change(
    word: &str,
    update: &Update,
    swap: Option<Swap>,
    restart: Option<RestartPolicy>,
) -> Result<(), Failure> {
    let kept = targets::kept(word)?;
    if kept.entry.kind == Kind::Vm {
        return Err(Failure::Start("it is a VM: use `mvm balloon` and `mvm resize`".into()));
    }
    if kept.is_saved() {
        return Err(Failure::Saved);
    }
    let id = kept.entry.id.clone();
    let order = kept.order::<Order>().map_err(|source| InstanceError::Order { id: id.clone(), source });
    let mut order = order?;
    if let Some(restart) = restart {
        if order.removes && restart != RestartPolicy::No {
            return Err(Failure::Start("it runs with --rm, which excludes --restart".into()));
        }
        order.restart = restart;
    }
    let refused = |error: &dyn std::error::Error| Failure::Start(chain(error));
    check_memory(update.memory).map_err(Failure::Start)?;
    update.apply(&mut order.options).map_err(|error| refused(&error))?;
    if let Some(line) = note(swap, order.options.memory).map_err(Failure::Start)? {
        complain(line);
    }
    if !update.is_empty() && kept.is_running {
        let vm = targets::find(&Registry::of_user(), id.as_str())?;
        let config = &vm.record.config;
        update.check(config.cpus, config.memory).map_err(|error| refused(&error))?;
        container::update(&vm.directory, id.as_str(), update)?;
    }
    let archive = Archive::of_user()?;
    archive.set_order(&id, &order)?;
    archive.change(&id, |entry| details::update(&mut entry.details, &order))?;
    events::note(&kept.entry, "update", &[]);
    Ok(())
}
