//! `mvm balloon`.

use std::process::ExitCode;

use clap::Args;
use instance::api::{BalloonStatistics, BalloonUpdate};
use instance::{Registry, Running};
use vmm::MemorySize;

use crate::table::{Table, bytes};
use crate::targets::{self, Failure};
use crate::{exit_code, json, print};

const MIB: u64 = 1 << 20;

/// Arguments of `mvm balloon`.
#[derive(Args)]
pub struct BalloonCommand {
    /// The VM: its ID, the beginning of its ID, or its name
    vm: String,

    /// How much memory is to be taken from the guest, 0 to give it back. The guest takes its time, and takes memory
    /// back before it kills a process for want of it
    #[arg(value_parser = size)]
    size: Option<u64>,

    /// Print JSON: an object with what the guest says of its memory, too
    #[arg(long, conflicts_with = "size")]
    json: bool,
}

impl BalloonCommand {
    /// Shows the balloon, or tells the guest of its new size.
    pub fn run(self) -> ExitCode {
        if let Some(amount_mib) = self.size {
            return targets::each(&[self.vm], |vm| {
                Ok(targets::client(vm)?.send("PATCH", "/balloon", &BalloonUpdate { amount_mib })?)
            });
        }
        let found = Registry::of_user().find(&self.vm).map_err(Failure::from);
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
        Err("a balloon has whole MiB: write it as in 256M".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_whole_mebibytes() {
        assert_eq!(["0", "1M", "2G", "1048576"].map(size), [0, 1, 2048, 1].map(Ok));
        for text in ["1", "1K", "512"] {
            assert!(size(text).unwrap_err().contains("whole MiB"), "{text}");
        }
        assert!(size("much").unwrap_err().contains("is not a size"));
    }
}
