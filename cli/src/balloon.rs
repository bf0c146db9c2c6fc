//! `mvm balloon`.

use clap::Args;
use instance::api::{BalloonStatistics, BalloonUpdate};
use instance::{Registry, Running};
use vmm::MemorySize;

use crate::process::ExitCode;
use crate::table::{Table, bytes};
use crate::targets::{self, Failure};
use crate::{exit_code, json, print};

const MIB: u64 = 1 << 20;

const EXAMPLES: &str = "\
Examples:
  mvm balloon web                show the balloon and the guest's memory
  mvm balloon web 512M           take 512 MiB from the guest
  mvm balloon web 0              give all of it back";

/// Arguments of `mvm balloon`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct BalloonCommand {
    /// ID, beginning of an ID, or name of the VM
    vm: String,

    /// Memory to take from the guest, such as 512M; 0 gives it back
    ///
    /// The guest gives memory as it can, and takes some back before it kills a process for lack of memory. The VM needs
    /// --balloon.
    #[arg(value_parser = size)]
    size: Option<u64>,

    /// Print JSON
    ///
    /// An object with the size of the balloon and the guest's memory statistics.
    #[arg(long, conflicts_with = "size")]
    json: bool,
}

impl BalloonCommand {
    /// Shows the balloon, or sets its target size.
    pub fn run(self) -> ExitCode {
        if let Some(amount_mib) = self.size {
            return targets::each(&[self.vm], |vm| {
                Ok(targets::client(vm)?.send("PATCH", "/balloon", &BalloonUpdate { amount_mib })?)
            });
        }
        let found = targets::find(&Registry::of_user(), &self.vm);
        match found.and_then(|vm| Ok((look(&vm)?, vm))) {
            Ok((balloon, _)) if self.json => print(json(&balloon).as_bytes(), exit_code::SUCCESS),
            Ok((balloon, vm)) => print(table(&vm, &balloon).as_bytes(), exit_code::SUCCESS),
            Err(failure) => targets::complain_of(&self.vm, &failure).into(),
        }
    }
}

fn look(vm: &Running) -> Result<BalloonStatistics, Failure> {
    Ok(targets::client(vm)?.get("/balloon/statistics")?)
}

fn table(vm: &Running, balloon: &BalloonStatistics) -> String {
    let mut table = Table::new(&["ID", "NAME", "TARGET", "BALLOON", "TOTAL", "FREE", "AVAILABLE"]);
    let guest = |name: &str| balloon.guest.get(name).map_or("-".into(), |count| bytes(*count));
    let pages = |count: u64| bytes(count.saturating_mul(4096));
    table.row([
        vm.record.id.to_string(),
        vm.record.name.as_ref().map_or("-".into(), ToString::to_string),
        pages(balloon.target_pages),
        pages(balloon.actual_pages),
        guest("total_memory"),
        guest("free_memory"),
        guest("available_memory"),
    ]);
    table.to_string()
}

/// Reads a size of whole MiB, and returns how many they are.
fn size(text: &str) -> Result<u64, String> {
    let size = text.parse::<MemorySize>().map_err(|error| error.to_string())?.bytes();
    if size.is_multiple_of(MIB) {
        Ok(size / MIB)
    } else {
        Err(format!(
            "the size of a balloon is a multiple of 1 MiB: {text} is {size} bytes; for MiB write a unit, as in 256M"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_whole_mebibytes() {
        assert_eq!(["0", "1M", "2G", "1048576"].map(size), [0, 1, 2048, 1].map(Ok));
        for text in ["1", "1K", "512"] {
            let error = size(text).unwrap_err();
            assert!(error.contains("a multiple of 1 MiB") && error.contains("bytes"), "{error}");
        }
        assert!(size("much").unwrap_err().contains("invalid size"));
    }
}
