//! `mvm doctor`.

use clap::Args;
use container::{Assets, AssetsError};
use serde::Serialize;
use vmm::{Check, Verdict, examine};

use crate::process::ExitCode;
use crate::table::Table;
use crate::{exit_code, json, print};

const EXAMPLES: &str = "\
Examples:
  mvm doctor
  mvm doctor --json | jq '.checks[] | select(.result != \"ok\")'

Exit codes: 0 a Linux guest can boot, 3 it cannot.";

/// Arguments of `mvm doctor`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct DoctorCommand {
    /// Print JSON
    ///
    /// An object with "can_boot" and "checks", an array of objects with "name", "result" ("ok", "warn" or "fail"),
    /// "found" and "fix" (null where the result is "ok").
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    can_boot: bool,
    checks: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    name: &'static str,
    result: &'static str,
    found: String,
    fix: Option<String>,
}

impl DoctorCommand {
    /// Prints a row for each check; fails where a Linux guest can't boot.
    pub fn run(self) -> ExitCode {
        let mut checks = examine();
        checks.push(containers(Assets::find()));
        let report = Report::of(checks);
        let text = if self.json { json(&report) } else { report.table() };
        print(text.as_bytes(), if report.can_boot { exit_code::SUCCESS } else { exit_code::HOST })
    }
}

/// What `mvm run` needs beyond what every VM does.
fn containers(assets: Result<Assets, AssetsError>) -> Check {
    let (verdict, found, fix) = match assets {
        Ok(Assets { kernel, root }) => {
            (Verdict::Good, format!("run with {} and {}", kernel.display(), root.display()), None)
        }
        Err(error) => (Verdict::Poor, error.found(), Some(error.advice().to_owned())),
    };
    Check { name: "containers", verdict, found, fix }
}

impl Report {
    fn of(checks: Vec<Check>) -> Self {
        let can_boot = checks.iter().all(|check| check.verdict != Verdict::Bad);
        let result = |verdict| match verdict {
            Verdict::Good => "ok",
            Verdict::Poor => "warn",
            Verdict::Bad => "fail",
        };
        let row = |check: Check| Row {
            name: check.name,
            result: result(check.verdict),
            found: check.found,
            fix: check.fix,
        };
        Self { can_boot, checks: checks.into_iter().map(row).collect() }
    }

    fn table(&self) -> String {
        let mut table = Table::new(&["CHECK", "RESULT", "FOUND"]);
        let mut fixes = String::new();
        for row in &self.checks {
            table.row([row.name.into(), row.result.into(), row.found.clone()]);
            if let Some(fix) = &row.fix {
                fixes += &format!("  {}: {fix}\n", row.name);
            }
        }
        let end = if self.can_boot {
            "This host can boot Linux guests."
        } else {
            "This host cannot boot Linux guests."
        };
        let fixes = if fixes.is_empty() { fixes } else { format!("\nTo fix or improve:\n{fixes}") };
        format!("{table}{fixes}\n{end}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &'static str, verdict: Verdict) -> Check {
        let fix = (verdict != Verdict::Good).then(|| "fix it".to_owned());
        Check { name, verdict, found: "found".into(), fix }
    }

    #[test]
    fn what_containers_need_is_not_needed_to_boot() {
        let assets = Assets { kernel: "/x/vmlinux".into(), root: "/x/agent.erofs".into() };
        let check = containers(Ok(assets));
        assert_eq!((check.verdict, &*check.found), (Verdict::Good, "run with /x/vmlinux and /x/agent.erofs"));
        let empty = tempfile::tempdir().unwrap();
        let check = containers(Assets::find_in(vec![empty.path().to_owned()]));
        assert!(check.found.contains("vmlinux") && check.found.contains(empty.path().to_str().unwrap()));
        assert!(check.fix.as_ref().unwrap().contains("make install"), "{check:?}");
        assert!(Report::of(vec![check]).can_boot);
    }

    #[test]
    fn a_failed_check_means_that_no_guest_boots() {
        let report = Report::of(vec![check("a", Verdict::Good), check("longer", Verdict::Poor)]);
        assert!(report.can_boot);
        let expected = "CHECK    RESULT   FOUND\na        ok       found\nlonger   warn     found\n\n\
                        To fix or improve:\n  longer: fix it\n\nThis host can boot Linux guests.\n";
        assert_eq!(report.table(), expected);
        let report = Report::of(vec![check("a", Verdict::Bad)]);
        assert!(!report.can_boot && report.table().ends_with("cannot boot Linux guests.\n"));
        let json: serde_json::Value = serde_json::from_str(&json(&report)).unwrap();
        assert_eq!(json["can_boot"], false);
        assert_eq!(json["checks"][0]["result"], "fail");
    }
}
