//! `mvm stats`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use clap::Args;
use instance::MetricsReport;
use instance::VmId;
use instance::{InstanceError, Registry, Running};
use serde::Serialize;

use crate::process::ExitCode;
use crate::table::{self, Cut, Table, bytes};
use crate::targets::{self, Failure};
use crate::{chain, complain, exit_code};

/// Time between two samples, which rates are computed from.
const INTERVAL: Duration = Duration::from_secs(1);
/// Moves the cursor to the upper left corner and clears the rest of the screen (ECMA-48: CUP, ED).
const CLEAR: &str = "\x1b[H\x1b[J";

const EXAMPLES: &str = "\
Examples:
  mvm stats
  mvm stats --no-stream --json web";

/// Arguments of `mvm stats`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct StatsCommand {
    /// IDs, beginnings of IDs, or names of VMs [default: all that run]
    #[arg(value_name = "VM")]
    vms: Vec<String>,

    /// Print once instead of each second
    #[arg(long)]
    no_stream: bool,

    /// Print JSON
    ///
    /// A line each second: an array with an object for each VM.
    #[arg(long)]
    json: bool,

    /// Do not shorten names to the terminal's width
    #[arg(long, conflicts_with = "json")]
    no_trunc: bool,
}

/// The resources that a VM uses.
#[derive(Serialize)]
struct Usage {
    id: String,
    name: Option<String>,
    /// Percent of one CPU: a VM with two busy vCPUs has 200.
    cpu_percent: f64,
    resident_bytes: u64,
    shared_bytes: u64,
    memory_bytes: u64,
    disk_read_bytes_per_second: u64,
    disk_write_bytes_per_second: u64,
    net_receive_bytes_per_second: u64,
    net_transmit_bytes_per_second: u64,
    exits_per_second: u64,
}

/// The counters of each VM at one time.
type Sample = HashMap<VmId, (Running, MetricsReport)>;

impl StatsCommand {
    /// Shows the table until its reader closes the pipe, or until none of the named VMs is left.
    pub fn run(self) -> ExitCode {
        let registry = Registry::of_user();
        let (vms, code) = match self.vms(&registry) {
            Ok(vms) => vms,
            Err(error) => {
                complain(&chain(&error));
                return exit_code::HOST.into();
            }
        };
        if vms.is_empty() && !self.vms.is_empty() {
            return code.into();
        }
        let asked = vms.clone();
        let mut before = sample(vms);
        for vm in
            asked.iter().filter(|vm| !before.contains_key(&vm.record.id) && vm.record.process.open().is_ok())
        {
            complain(&format!("VM {}: not responding", vm.record.id));
        }
        loop {
            std::thread::sleep(INTERVAL);
            let vms = if self.vms.is_empty() {
                registry.running().map(|(running, _)| running).unwrap_or_default()
            } else {
                before.values().map(|(vm, _)| vm.clone()).collect()
            };
            let after = sample(vms);
            let mut rows: Vec<Usage> =
                after.iter().filter_map(|(id, (vm, now))| Some(usage(vm, &before.get(id)?.1, now))).collect();
            rows.sort_by(|one, other| (&one.name, &one.id).cmp(&(&other.name, &other.id)));
            let done = self.no_stream || (!self.vms.is_empty() && after.is_empty());
            match self.show(&rows) {
                Ok(()) if done => return code.into(),
                Ok(()) => before = after,
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return code.into(),
                Err(error) => {
                    complain(&format!("cannot write to standard output: {error}"));
                    return exit_code::HOST.into();
                }
            }
        }
    }

    /// The VMs that were named, or all, and the exit code so far: an error is printed for each name without a VM.
    fn vms(&self, registry: &Registry) -> Result<(Vec<Running>, u8), InstanceError> {
        let mut code = exit_code::SUCCESS;
        if self.vms.is_empty() {
            let (running, damaged) = registry.running()?;
            damaged.iter().for_each(|error| complain(&chain(error)));
            return Ok((running, code));
        }
        let mut vms = Vec::new();
        for word in &self.vms {
            match registry.find(word) {
                Ok(vm) => vms.push(vm),
                Err(error) => code = code.max(targets::complain_of(word, &error.into())),
            }
        }
        Ok((vms, code))
    }

    fn show(&self, rows: &[Usage]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            serde_json::to_writer(&mut out, rows)?;
            writeln!(out)?;
        } else {
            let clear = if out.is_terminal() && !self.no_stream { CLEAR } else { "" };
            let width = if self.no_trunc { None } else { table::terminal_width() };
            write!(out, "{clear}{}", table(rows, width))?;
        }
        out.flush()
    }
}

/// Reads the counters of each VM. One that has ended or does not answer is left out.
fn sample(vms: Vec<Running>) -> Sample {
    let ask = |vm: &Running| Ok::<_, Failure>(targets::quick_client(vm)?.get("/metrics.json")?);
    let answers = targets::at_once(&vms, ask);
    let answers = vms.into_iter().zip(answers);
    answers.filter_map(|(vm, now)| now.ok().map(|now| (vm.record.id.clone(), (vm, now)))).collect()
}

/// What `vm` used between two samples.
fn usage(vm: &Running, before: &MetricsReport, now: &MetricsReport) -> Usage {
    let time = now.process.time_nanoseconds.saturating_sub(before.process.time_nanoseconds).max(1);
    let cpu = now.process.cpu_nanoseconds.saturating_sub(before.process.cpu_nanoseconds);
    let difference =
        |kind: &str, counter: &str| now.sum(kind, counter).saturating_sub(before.sum(kind, counter));
    let rate = |kind: &str, counter: &str| per_second(difference(kind, counter), time);
    let exits = now.total("vcpu").saturating_sub(before.total("vcpu"));
    let memory = memory(vm).unwrap_or((now.process.resident_bytes, now.process.shared_bytes));
    Usage {
        id: vm.record.id.to_string(),
        name: vm.record.name.as_ref().map(ToString::to_string),
        // Rounded to a tenth of a percent.
        cpu_percent: f64::from(u32::try_from(u128::from(cpu) * 1000 / u128::from(time)).unwrap_or(u32::MAX))
            / 10.0,
        resident_bytes: memory.0,
        shared_bytes: memory.1,
        memory_bytes: vm.record.config.memory,
        disk_read_bytes_per_second: rate("block", "read_bytes"),
        disk_write_bytes_per_second: rate("block", "write_bytes"),
        net_receive_bytes_per_second: rate("net", "rx_bytes"),
        net_transmit_bytes_per_second: rate("net", "tx_bytes"),
        exits_per_second: per_second(exits, time),
    }
}

fn per_second(count: u64, nanoseconds: u64) -> u64 {
    u64::try_from(u128::from(count) * 1_000_000_000 / u128::from(nanoseconds)).unwrap_or(u64::MAX)
}

/// The resident memory of the VM's process, and how much of it is shared with other processes. The kernel counts the
/// latter by page; the VM's own metrics count all pages of files as shared.
fn memory(vm: &Running) -> Option<(u64, u64)> {
    // Checked after the file is open: the process ID may have been reused.
    let file = File::open(format!("/proc/{}/smaps_rollup", vm.record.process.pid)).ok()?;
    vm.record.process.open().ok()?;
    resident_and_shared(&io::read_to_string(file).ok()?)
}

/// Bytes by the lines of a smaps_rollup file (proc_pid_smaps(5)).
fn resident_and_shared(rollup: &str) -> Option<(u64, u64)> {
    let kib = |name: &str| {
        let line = rollup.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
    };
    Some((kib("Rss")?, kib("Shared_Clean")?.checked_add(kib("Shared_Dirty")?)?))
}

fn table(rows: &[Usage], width: Option<usize>) -> String {
    let heading = [
        "ID",
        "NAME",
        "CPU %",
        "RESIDENT / MEMORY",
        "SHARED",
        "DISK READ/s",
        "WRITE/s",
        "NET RX/s",
        "TX/s",
        "EXITS/s",
    ];
    let mut table = Table::new(&heading);
    for row in rows {
        table.row([
            row.id.clone(),
            row.name.clone().unwrap_or_else(|| "-".into()),
            format!("{:.1}", row.cpu_percent),
            format!("{} / {}", bytes(row.resident_bytes), bytes(row.memory_bytes)),
            bytes(row.shared_bytes),
            bytes(row.disk_read_bytes_per_second),
            bytes(row.disk_write_bytes_per_second),
            bytes(row.net_receive_bytes_per_second),
            bytes(row.net_transmit_bytes_per_second),
            row.exits_per_second.to_string(),
        ]);
    }
    if let Some(width) = width {
        table.fit(width, &[(1, Cut::End)]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_its_lines() {
        let rollup = "55d0-7ffd ---p 00000000 00:00 0    [rollup]\nRss:        884 kB\nPss:   1 kB\nPss_Anon: 1 kB\n\
                      Shared_Clean:  100 kB\nShared_Dirty:    4 kB\n";
        assert_eq!(resident_and_shared(rollup), Some((884 << 10, 104 << 10)));
        assert_eq!(resident_and_shared("Rss: many kB"), None);
        assert_eq!(resident_and_shared(""), None);
        let own = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
        assert!(resident_and_shared(&own).is_some_and(|(resident, shared)| resident > shared), "{own}");
    }

    #[test]
    fn rates_are_those_of_the_time_that_passed() {
        assert_eq!(per_second(10, 2_000_000_000), 5);
        assert_eq!(per_second(0, 1), 0);
        assert_eq!(per_second(u64::MAX, 1), u64::MAX);
    }
}
