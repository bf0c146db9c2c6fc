//! `mvm doctor`.

use std::process::ExitCode;

use vmm::host::{Verdict, examine};

use crate::{exit_code, print};

/// Prints a line a check; fails where a VM can't run.
pub fn run() -> ExitCode {
    let mut can_run = true;
    let mut report = String::new();
    for check in examine() {
        let mark = match check.verdict {
            Verdict::Good => "ok  ",
            Verdict::Poor => "poor",
            Verdict::Bad => "BAD ",
        };
        can_run &= check.verdict != Verdict::Bad;
        let mend = check.mend.map(|mend| format!("; {mend}")).unwrap_or_default();
        report += &format!("{mark}  {:<14} {}{mend}\n", check.name, check.found);
    }
    print(report.as_bytes(), if can_run { exit_code::SUCCESS } else { exit_code::HOST })
}
