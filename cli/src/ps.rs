//! `mvm ps`.

use clap::Args;
use instance::api::{InstanceInfo, State};
use instance::{Registry, Running};
use serde::Serialize;
use vmm::MemorySize;

use crate::process::ExitCode;
use crate::table::{self, Cut, Table, duration};
use crate::targets::{self, Failure};
use crate::{chain, complain, exit_code, print};

const EXAMPLES: &str = "\
Examples:
  mvm ps
  mvm stop $(mvm ps --quiet)
  mvm ps --json | jq -r '.[].control_socket'";

/// Arguments of `mvm ps`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct PsCommand {
    /// Print JSON
    ///
    /// An array with an object for each VM.
    #[arg(long)]
    json: bool,

    /// Print only IDs
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,

    /// Do not shorten the table to the terminal's width
    ///
    /// On a terminal, names and paths that do not fit are cut, and the columns ROOTFS and KERNEL are left out where that
    /// is not enough. Output to a file or pipe is complete.
    #[arg(long, conflicts_with_all = ["json", "quiet"])]
    no_trunc: bool,
}

/// A VM as `mvm ps --json` shows it.
#[derive(Serialize)]
struct Row {
    id: String,
    name: Option<String>,
    state: &'static str,
    cpus: u32,
    memory_bytes: u64,
    created: u64,
    uptime_seconds: u64,
    pid: i32,
    kernel: String,
    rootfs: Option<String>,
    control_socket: String,
}

impl PsCommand {
    /// Lists this user's running VMs.
    pub fn run(self) -> ExitCode {
        let (running, damaged) = match Registry::of_user().running() {
            Ok(found) => found,
            Err(error) => {
                complain(&chain(&error));
                return exit_code::HOST.into();
            }
        };
        for error in damaged {
            complain(&chain(&error));
        }
        if self.quiet {
            let ids: String = running.iter().map(|vm| format!("{}\n", vm.record.id)).collect();
            return print(ids.as_bytes(), exit_code::SUCCESS);
        }
        let rows = targets::at_once(&running, row);
        let text = if self.json {
            crate::json(&rows)
        } else {
            let width = if self.no_trunc { None } else { table::terminal_width() };
            table(&rows, width)
        };
        print(text.as_bytes(), exit_code::SUCCESS)
    }
}

/// The state in words. A VM whose process is stopped or too busy to answer is "not responding".
fn state(vm: &Running) -> &'static str {
    let ask = || Ok::<_, Failure>(targets::quick_client(vm)?.get::<InstanceInfo>("/")?);
    match ask().map(|info| info.state) {
        Ok(State::Running) => "running",
        Ok(State::Paused) => "paused",
        Err(_) => "not responding",
    }
}

fn row(vm: &Running) -> Row {
    let record = &vm.record;
    Row {
        id: record.id.to_string(),
        name: record.name.as_ref().map(ToString::to_string),
        state: state(vm),
        cpus: record.config.cpus,
        memory_bytes: record.config.memory,
        created: record.created,
        uptime_seconds: record.process.age().as_secs(),
        pid: record.process.pid,
        kernel: record.config.kernel.clone(),
        rootfs: record.config.rootfs.clone(),
        control_socket: vm.control_socket().to_string_lossy().into_owned(),
    }
}

fn table(rows: &[Row], width: Option<usize>) -> String {
    let mut table =
        Table::new(&["ID", "NAME", "STATE", "CPUS", "MEMORY", "UPTIME", "PID", "KERNEL", "ROOTFS"]);
    for row in rows {
        table.row([
            row.id.clone(),
            row.name.clone().unwrap_or_else(|| "-".into()),
            row.state.into(),
            row.cpus.to_string(),
            MemorySize::from_bytes(row.memory_bytes).to_string(),
            duration(row.uptime_seconds),
            row.pid.to_string(),
            row.kernel.clone(),
            row.rootfs.clone().unwrap_or_else(|| "-".into()),
        ]);
    }
    if let Some(width) = width {
        table.fit(width, &[(1, Cut::End), (7, Cut::Start), (8, Cut::Start)]);
    }
    table.to_string()
}
