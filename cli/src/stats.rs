//! `mvm stats`.

use std::collections::HashMap;
use std::io;

use clap::Args;
use instance::{
    Archive, CgroupUsage, ClientError, Entry, InstanceError, Kind, MetricsReport, Registry, Running, VmId,
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::format::{Column, Format};
use crate::process::ExitCode;
use crate::screen::{each_second, no_form, show};
use crate::table::{self, Cut, Table, bytes};
use crate::targets::{self, Failure};
use crate::{chain, complain, exit_code};

const EXAMPLES: &str = "\
Examples:
  mvm stats
  mvm stats --no-stream --json web
  mvm stats --format '{{.Name}}: {{.CPUPerc}}'

The first columns are docker's: what a container uses of its VM, with the
caches of files left out; of a VM itself, what its process uses. The last
ones are the VM's on the host. Of a container in a pod, the network and the
VM are the pod's.
Fields of templates: ID, Container, Name, CPUPerc, MemUsage, MemPerc, NetIO,
BlockIO, PIDs.";

/// Fields of a row, and docker's headings.
const COLUMNS: &[Column] = &[
    ("Container", "CONTAINER"),
    ("ID", "CONTAINER ID"),
    ("Name", "NAME"),
    ("CPUPerc", "CPU %"),
    ("MemUsage", "MEM USAGE / LIMIT"),
    ("MemPerc", "MEM %"),
    ("NetIO", "NET I/O"),
    ("BlockIO", "BLOCK I/O"),
    ("PIDs", "PIDS"),
];

/// Arguments of `mvm stats`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct StatsCommand {
    /// IDs, beginnings of IDs, or names [default: all that run]
    #[arg(value_name = "NAME")]
    vms: Vec<String>,

    /// Print once instead of each second
    #[arg(long)]
    no_stream: bool,

    /// Print JSON
    ///
    /// A line each second: an array with an object for each VM.
    #[arg(long)]
    json: bool,

    /// Print json, "table TEMPLATE" or a Go template
    #[arg(long, value_name = "FORMAT", conflicts_with = "json")]
    format: Option<Format>,

    /// Show those that do not run too
    #[arg(long, short)]
    all: bool,

    /// Do not shorten the table to the terminal's width
    ///
    /// On a terminal, names that do not fit are cut, and columns from the right are left out where that is not enough.
    /// Output to a file or pipe is complete.
    #[arg(long, conflicts_with = "json")]
    no_trunc: bool,
}

/// Those of `running` that have a VM: what containers of a pod use is counted to the pod.
fn with_vms(running: Vec<Running>) -> Vec<Running> {
    running.into_iter().filter(|vm| container::pod_directory(&vm.directory).is_none()).collect()
}

/// The resources that a VM uses.
#[derive(Default, Serialize)]
struct Usage {
    id: String,
    name: Option<String>,
    /// What the container in it uses, where it is that of one that answers.
    container: Option<ContainerUsage>,
    /// Percent of one CPU: a VM with two busy vCPUs has 200. Where the VM has a control group, this and the memory are
    /// what the kernel counts for its process and those that serve its devices together.
    cpu_percent: f64,
    resident_bytes: u64,
    shared_bytes: u64,
    memory_bytes: u64,
    disk_read_bytes_per_second: u64,
    disk_write_bytes_per_second: u64,
    net_receive_bytes_per_second: u64,
    net_transmit_bytes_per_second: u64,
    exits_per_second: u64,
    disk_read_bytes: u64,
    disk_write_bytes: u64,
    net_receive_bytes: u64,
    net_transmit_bytes: u64,
    /// It is a container's whose agent does not answer, as while it is paused.
    #[serde(skip)]
    silent: bool,
    /// Its VM is its pod's. What of the disks is its own is not counted.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    in_pod: bool,
    /// It does not run, and uses nothing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    ended: bool,
}

/// What a container uses of its VM.
#[derive(Clone, Copy, Serialize)]
pub struct ContainerUsage {
    /// Percent of one CPU.
    pub cpu_percent: f64,
    /// Without the caches of files.
    pub memory_bytes: u64,
    /// That of the VM where it has none of its own.
    pub memory_limit_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// The counters of each VM at one time.
type Sample = HashMap<VmId, (Running, Counters)>;

/// What one VM has counted.
struct Counters {
    report: MetricsReport,
    /// Of its control group, where it has one.
    group: Option<CgroupUsage>,
    /// Of a container that answers.
    container: Option<container::Usage>,
    /// The container's own limit.
    memory_limit: Option<u64>,
    /// It is a container's, which may not have answered.
    is_container: bool,
    /// It is that of a container which shares a pod's VM, whose other counters these are.
    in_pod: bool,
    /// The VM's bytes.
    memory: u64,
}

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
        each_second(code, || {
            let vms = if self.vms.is_empty() {
                registry.running().map(|(running, _)| with_vms(running)).unwrap_or_default()
            } else {
                before.values().map(|(vm, _)| vm.clone()).collect()
            };
            let after = sample(vms);
            let mut rows: Vec<Usage> =
                after.iter().filter_map(|(id, (vm, now))| Some(usage(vm, &before.get(id)?.1, now))).collect();
            if self.all && self.vms.is_empty() {
                rows.extend(ended());
            }
            rows.sort_by(|one, other| (&one.name, &one.id).cmp(&(&other.name, &other.id)));
            show(!self.no_stream && !self.json, &self.text(&rows)?)?;
            let is_done = self.no_stream || (!self.vms.is_empty() && after.is_empty());
            before = after;
            Ok(is_done)
        })
    }

    /// The VMs that were named, or all, and the exit code so far: an error is printed for each name without a VM.
    fn vms(&self, registry: &Registry) -> Result<(Vec<Running>, u8), InstanceError> {
        let mut code = exit_code::SUCCESS;
        if self.vms.is_empty() {
            let (running, damaged) = registry.running()?;
            damaged.iter().for_each(|error| complain(&chain(error)));
            return Ok((with_vms(running), code));
        }
        let mut vms = Vec::new();
        for word in &self.vms {
            match targets::find(registry, word) {
                Ok(vm) => vms.push(vm),
                Err(failure) => code = code.max(targets::complain_of(word, &failure)),
            }
        }
        Ok((vms, code))
    }

    fn text(&self, rows: &[Usage]) -> io::Result<String> {
        if self.json {
            return Ok(serde_json::to_string(rows)? + "\n");
        }
        if let Some(format) = self.format.as_ref().filter(|format| !format.is_default()) {
            let rows: Vec<Value> = rows.iter().map(Usage::fields).collect();
            return format.list(COLUMNS, &[], &rows).map_err(no_form);
        }
        let width = if self.no_trunc { None } else { table::terminal_width() };
        Ok(table(rows, width))
    }
}

/// Reads the counters of each VM. One that has ended or does not answer is left out.
fn sample(vms: Vec<Running>) -> Sample {
    let answers = targets::at_once(&vms, counters);
    let answers = vms.into_iter().zip(answers);
    answers.filter_map(|(vm, now)| now.ok().map(|now| (vm.record.id.clone(), (vm, now)))).collect()
}

fn counters(vm: &Running) -> Result<Counters, Failure> {
    let id = vm.record.id.as_str();
    let kept = Archive::of_user().and_then(|archive| archive.find(id)).ok();
    let entry = kept.map(|kept| kept.entry).filter(|entry| entry.kind == Kind::Container);
    let pod = match entry.as_ref().and_then(|entry| entry.pod.as_ref()) {
        Some(pod) => {
            // Its VM says nothing of its end.
            vm.record.process.open()?;
            Some(Registry::of_user().find(pod.as_str())?)
        }
        None => None,
    };
    let machine = pod.as_ref().unwrap_or(vm);
    if machine.record.running_process().is_stopped() {
        return Err(ClientError::Io(io::ErrorKind::TimedOut.into()).into());
    }
    let mut client = targets::quick_client(machine)?;
    let report: MetricsReport = client.get("/metrics.json")?;
    Ok(Counters {
        report,
        group: CgroupUsage::of(&machine.directory, &machine.record.id),
        container: entry.as_ref().and_then(|_| container::usage(&vm.directory, id).ok()),
        memory_limit: entry.as_ref().and_then(memory_limit),
        is_container: entry.is_some(),
        in_pod: pod.is_some(),
        memory: machine.record.config.memory,
    })
}

/// The bytes of memory that a container may use, where it has a limit of its own.
pub fn memory_limit(entry: &Entry) -> Option<u64> {
    entry.details.pointer("/HostConfig/Memory").and_then(Value::as_u64).filter(|limit| *limit > 0)
}

/// Those that have ended or not started, which use nothing.
fn ended() -> Vec<Usage> {
    let kept = Archive::of_user().and_then(|archive| archive.all()).map(|(kept, _)| kept).unwrap_or_default();
    let ended = kept.into_iter().filter(|kept| !kept.is_running && kept.entry.kind != Kind::Pod);
    ended
        .map(|kept| Usage {
            id: kept.entry.id.to_string(),
            name: kept.entry.name.as_ref().map(ToString::to_string),
            ended: true,
            ..Usage::default()
        })
        .collect()
}

/// What `vm` used between two samples.
fn usage(vm: &Running, before: &Counters, now: &Counters) -> Usage {
    let (memory, in_pod) = (now.memory, now.in_pod);
    let limit = now.memory_limit.unwrap_or(memory);
    let container = now.container.map(|now| of_agent(before.container, now, limit));
    let silent = now.is_container && container.is_none();
    let groups = before.group.zip(now.group);
    let (before, now) = (&before.report, &now.report);
    let time = now.process.time_nanoseconds.saturating_sub(before.process.time_nanoseconds).max(1);
    let (cpu, resident_bytes) = match groups {
        Some((before, now)) => (now.cpu_nanoseconds.saturating_sub(before.cpu_nanoseconds), now.memory_bytes),
        None => {
            let cpu = now.process.cpu_nanoseconds.saturating_sub(before.process.cpu_nanoseconds);
            (cpu, now.process.resident_bytes)
        }
    };
    let difference =
        |kind: &str, counter: &str| now.sum(kind, counter).saturating_sub(before.sum(kind, counter));
    let rate = |kind: &str, counter: &str| per_second(difference(kind, counter), time);
    let exits = now.total("vcpu").saturating_sub(before.total("vcpu"));
    Usage {
        id: vm.record.id.to_string(),
        name: vm.record.name.as_ref().map(ToString::to_string),
        container,
        cpu_percent: percent(cpu, time),
        resident_bytes,
        shared_bytes: now.process.shared_bytes,
        memory_bytes: memory,
        disk_read_bytes_per_second: rate("block", "read_bytes"),
        disk_write_bytes_per_second: rate("block", "write_bytes"),
        net_receive_bytes_per_second: rate("net", "rx_bytes"),
        net_transmit_bytes_per_second: rate("net", "tx_bytes"),
        exits_per_second: per_second(exits, time),
        disk_read_bytes: now.sum("block", "read_bytes"),
        disk_write_bytes: now.sum("block", "write_bytes"),
        net_receive_bytes: now.sum("net", "rx_bytes"),
        net_transmit_bytes: now.sum("net", "tx_bytes"),
        silent,
        in_pod,
        ended: false,
    }
}

/// `part` of `whole` in percent, rounded to a tenth; 0 of nothing.
pub fn percent(part: u64, whole: u64) -> f64 {
    let tenths = (u128::from(part) * 1000).checked_div(whole.into()).unwrap_or(0);
    f64::from(u32::try_from(tenths).unwrap_or(u32::MAX)) / 10.0
}

/// What a container used, whose agent may say anything.
pub fn of_agent(before: Option<container::Usage>, now: container::Usage, limit: u64) -> ContainerUsage {
    let difference =
        |of: fn(&container::Usage) -> u64| of(&now).saturating_sub(before.as_ref().map_or(0, of));
    ContainerUsage {
        cpu_percent: if before.is_some() {
            percent(difference(|usage| usage.cpu), difference(|usage| usage.at))
        } else {
            0.0
        },
        memory_bytes: now.memory.saturating_sub(now.cache),
        memory_limit_bytes: limit,
        pids: now.pids,
    }
}

impl Usage {
    /// CPU, and bytes of memory and of their limit, as docker's columns show them.
    fn shown(&self) -> (f64, u64, u64) {
        self.container.map_or((self.cpu_percent, self.resident_bytes, self.memory_bytes), |container| {
            (container.cpu_percent, container.memory_bytes, container.memory_limit_bytes)
        })
    }

    /// The cells of docker's columns behind the name; dashes of one that does not run.
    fn cells(&self) -> [String; 6] {
        let none = ["--", "-- / --", "--", "-- / --", "-- / --", "--"].map(str::to_owned);
        if self.ended {
            return none;
        }
        let both = |one, other| format!("{} / {}", bytes(one), bytes(other));
        let net = both(self.net_receive_bytes, self.net_transmit_bytes);
        let disk = if self.in_pod {
            "-- / --".to_owned()
        } else {
            both(self.disk_read_bytes, self.disk_write_bytes)
        };
        if self.silent {
            // The VM's own figures would look like the container's.
            let [cpu, memory, share, _, _, pids] = none;
            return [cpu, memory, share, net, disk, pids];
        }
        let (cpu, memory, limit) = self.shown();
        [
            format!("{cpu:.1}%"),
            both(memory, limit),
            format!("{:.1}%", percent(memory, limit)),
            net,
            disk,
            self.container.map_or_else(|| "--".into(), |container| container.pids.to_string()),
        ]
    }

    /// The fields of a template.
    fn fields(&self) -> Value {
        let name = self.name.as_deref().unwrap_or(&self.id);
        let [cpu, memory, share, net, block, pids] = self.cells();
        json!({
            "Container": self.id, "ID": self.id, "Name": name, "CPUPerc": cpu, "MemUsage": memory,
            "MemPerc": share, "NetIO": net, "BlockIO": block, "PIDs": pids,
        })
    }
}

fn per_second(count: u64, nanoseconds: u64) -> u64 {
    u64::try_from(u128::from(count) * 1_000_000_000 / u128::from(nanoseconds)).unwrap_or(u64::MAX)
}

fn table(rows: &[Usage], width: Option<usize>) -> String {
    let heading = [
        "ID",
        "NAME",
        "CPU %",
        "MEM USAGE / LIMIT",
        "MEM %",
        "NET I/O",
        "BLOCK I/O",
        "PIDS",
        "VM CPU %",
        "RESIDENT / MEMORY",
        "SHARED",
        "EXITS/s",
    ];
    let mut table = Table::new(&heading);
    for row in rows {
        let of_vm = if row.ended {
            ["--", "-- / --", "--", "--"].map(str::to_owned)
        } else {
            [
                format!("{:.1}%", row.cpu_percent),
                format!("{} / {}", bytes(row.resident_bytes), bytes(row.memory_bytes)),
                bytes(row.shared_bytes),
                row.exits_per_second.to_string(),
            ]
        };
        let named = [row.id.clone(), row.name.clone().unwrap_or_else(|| "-".into())];
        table.row(named.into_iter().chain(row.cells()).chain(of_vm));
    }
    if let Some(width) = width {
        // The last columns are left out one after the other; none of their cells is so wide that it is cut.
        let rest = (4..heading.len()).map(|column| (column, Cut::End));
        table.fit(width, &[(1, Cut::End)].into_iter().chain(rest).collect::<Vec<_>>());
    }
    table.to_string()
}

#[cfg(test)]
#[path = "stats_tests.rs"]
mod tests;
