//! `mvm doctor`.

mod mend;

use clap::Args;
use container::{Assets, AssetsError};
use serde::Serialize;
use vmm::{Check, Verdict, examine};

use crate::defaults::Defaults;
use crate::process::ExitCode;
use crate::table::{self, Table};
use crate::{exit_code, json, print};

/// Before each further line of what to do.
const INDENT: &str = "    ";

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
    /// "found" and "fix" (null where the result is "ok"); and "command", which mends all that a command can mend, or
    /// null.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    can_boot: bool,
    checks: Vec<Row>,
    /// A line for a shell.
    command: Option<String>,
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
        let defaults = Defaults::read();
        let mut checks = examine(defaults.as_ref().ok().and_then(|defaults| defaults.jail_ids));
        checks.push(containers(Assets::find()));
        checks.extend(defaults.err().map(|found| Check {
            name: "defaults",
            verdict: Verdict::Poor,
            found,
            fix: Some("mend that file; `mvm run` refuses to start until then".into()),
            remedies: Vec::new(),
        }));
        let report = Report::of(checks);
        let text = if self.json { json(&report) } else { report.table(table::terminal_width()) };
        print(text.as_bytes(), if report.can_boot { exit_code::SUCCESS } else { exit_code::HOST })
    }
}

/// What `mvm run` needs beyond what every VM does.
fn containers(assets: Result<Assets, AssetsError>) -> Check {
    let (verdict, found, fix, remedies) = match assets {
        Ok(Assets { kernel, root, changes }) => {
            let all = [kernel, root, changes].map(|path| path.display().to_string());
            (Verdict::Good, format!("run with {}", all.join(", ")), None, Vec::new())
        }
        Err(error) => {
            // Where the user says where they are, that is to be mended.
            let is_set = std::env::var_os("MVM_ASSETS").is_some();
            let remedies = if is_set { Vec::new() } else { mend::assets().into_iter().collect() };
            (Verdict::Poor, error.found(), Some(error.advice().to_owned()), remedies)
        }
    };
    Check { name: "containers", verdict, found, fix, remedies }
}

impl Report {
    fn of(checks: Vec<Check>) -> Self {
        let command = mend::command(&checks, rustix::process::geteuid().is_root());
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
        Self { can_boot, checks: checks.into_iter().map(row).collect(), command }
    }

    /// The table, and below it what to do, in lines of `width` characters where that is given.
    fn table(&self, width: Option<usize>) -> String {
        let mut table = Table::new(&["CHECK", "RESULT", "FOUND"]);
        let mut fixes = String::new();
        for row in &self.checks {
            table.row([row.name.into(), row.result.into(), row.found.clone()]);
            if let Some(fix) = &row.fix {
                let fix = format!("{}: {fix}", row.name);
                let room = width.map_or(usize::MAX, |width| width.saturating_sub(INDENT.len()).max(20));
                fixes += &format!("  {}\n", table::wrapped(&fix, room).join(&format!("\n{INDENT}")));
            }
        }
        if let Some(width) = width {
            table.wrap(width);
        }
        let end = if self.can_boot {
            "This host can boot Linux guests."
        } else {
            "This host cannot boot Linux guests."
        };
        let fixes = if fixes.is_empty() { fixes } else { format!("\nTo fix or improve:\n{fixes}") };
        // Whole, so that it can be copied.
        let command = self
            .command
            .as_ref()
            .map(|command| format!("\nThis command does what a command can:\n  {command}\n"));
        format!("{table}{fixes}{}\n{end}\n", command.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &'static str, verdict: Verdict) -> Check {
        let fix = (verdict != Verdict::Good).then(|| "fix it".to_owned());
        Check { name, verdict, found: "found".into(), fix, remedies: Vec::new() }
    }

    #[test]
    fn what_containers_need_is_not_needed_to_boot() {
        let assets =
            Assets { kernel: "/x/vmlinux".into(), root: "/x/root".into(), changes: "/x/changes".into() };
        let check = containers(Ok(assets));
        assert_eq!(
            (check.verdict, &*check.found),
            (Verdict::Good, "run with /x/vmlinux, /x/root, /x/changes")
        );
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
        assert_eq!(report.table(None), expected);
        let long = Check {
            found: "found ".repeat(30),
            fix: Some("fix ".repeat(30)),
            ..check("long", Verdict::Poor)
        };
        let text = Report::of(vec![long]).table(Some(60));
        assert!(text.lines().all(|line| line.chars().count() <= 60), "{text}");
        assert!(text.contains("\n                 found found") && text.contains("\n    fix fix"), "{text}");
        let remedies = vec![vmm::Remedy::User("make it".into())];
        let text = Report::of(vec![Check { remedies, ..check("a", Verdict::Poor) }]).table(Some(60));
        assert!(text.contains("\nThis command does what a command can:\n  make it\n\n"), "{text}");
        let report = Report::of(vec![check("a", Verdict::Bad)]);
        assert!(!report.can_boot && report.table(None).ends_with("cannot boot Linux guests.\n"));
        let json: serde_json::Value = serde_json::from_str(&json(&report)).unwrap();
        assert_eq!(json["can_boot"], false);
        assert_eq!(json["checks"][0]["result"], "fail");
    }
}
