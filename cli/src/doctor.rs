//! `mvm doctor`.

use std::process::ExitCode;

use vmm::host::{Verdict, examine};

use crate::exit_code;

/// Prints a line a check; fails where a VM can't run.
pub fn run() -> ExitCode {
    let mut can_run = true;
    for check in examine() {
        let mark = match check.verdict {
            Verdict::Good => "ok  ",
            Verdict::Poor => "poor",
            Verdict::Bad => "BAD ",
        };
        can_run &= check.verdict != Verdict::Bad;
        let mend = check.mend.map(|mend| format!("; {mend}")).unwrap_or_default();
        println!("{mark}  {:<14} {}{mend}", check.name, check.found);
    }
    if can_run { exit_code::SUCCESS.into() } else { exit_code::HOST.into() }
}
