//! Tests of the systemd units in contrib/systemd.

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Parser;
use rstest::rstest;

use crate::Cli;

const PROGRAM: &str = "/usr/local/bin/mvm";

fn unit(manager: &str, name: &str) -> (PathBuf, String) {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../contrib/systemd/{manager}/{name}.service"));
    let text = std::fs::read_to_string(&path).unwrap();
    (path, text)
}

#[rstest]
#[case("system")]
#[case("user")]
fn a_unit_is_valid_for_systemd(#[case] manager: &str, #[values("mvm@", "mvm-restore")] name: &str) {
    let (path, text) = unit(manager, name);
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join(path.file_name().unwrap());
    // It has to be a program that exists.
    std::fs::write(&copy, text.replace(PROGRAM, "/bin/true")).unwrap();
    let mut command = Command::new("systemd-analyze");
    command.args(["verify", "--man=no"]).arg(format!("--{manager}")).arg(&copy);
    match command.env("XDG_RUNTIME_DIR", directory.path()).output() {
        Err(error) => eprintln!("skipped: systemd-analyze cannot be run: {error}"),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let unit = copy.file_name().unwrap().to_str().unwrap();
            assert!(output.status.success() && !said.contains(unit), "{said}");
        }
    }
}

#[rstest]
#[case("system")]
#[case("user")]
fn a_unit_starts_mvm_with_options_that_it_has(
    #[case] manager: &str,
    #[values(("mvm@", "boot "), ("mvm-restore", "system restore"))] unit_of: (&str, &str),
) {
    let (name, begins) = unit_of;
    let (_, text) = unit(manager, name);
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_else(|| panic!("no {key}="))
    };
    let command = value("ExecStart").replace("%i", "web").replace("%E", "/etc");
    assert!(command.starts_with(&format!("{PROGRAM} {begins}")), "{command}");
    Cli::try_parse_from(command.split(' ')).unwrap_or_else(|error| panic!("{error}"));
    // Longer than mvm waits for a guest before it ends the VM by force.
    assert!(value("TimeoutStopSec").parse::<u64>().unwrap() >= 30);
    assert_eq!(value("KillMode"), "control-group");
}
