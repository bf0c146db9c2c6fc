//! `mvm pod stats`.

use std::collections::HashMap;
use std::io;

use clap::Args;
use instance::{CONTROL_SOCKET, Client, Kept, MetricsReport, Registry, VmName};
use serde_json::{Value, json};

use super::{containers, find, list};
use crate::format::{Column, Format, fitted_table};
use crate::process::ExitCode;
use crate::screen::{each_second, no_form, show};
use crate::stats::{memory_limit, of_agent, percent};
use crate::table::{self, Cut, bytes};
use crate::targets::{ANSWER, at_once};
use crate::{chain, complain, exit_code};

const EXAMPLES: &str = "\
Examples:
  mvm pod stats
  mvm pod stats --no-stream --format json web

A container without a limit of memory has the pod's VM as its limit. The
network is the pod's, which all its containers share. `mvm stats` shows what
the VMs of pods use.";

/// Fields of a row, and podman's headings.
const COLUMNS: &[Column] = &[
    ("Pod", "POD"),
    ("CID", "CID"),
    ("Name", "NAME"),
    ("CPU", "CPU %"),
    ("MemUsage", "MEM USAGE/ LIMIT"),
    ("MemUsageBytes", "MEM USAGE/ LIMIT"),
    ("Mem", "MEM %"),
    ("NetIO", "NET IO"),
    ("BlockIO", "BLOCK IO"),
    ("PIDS", "PIDS"),
];

/// Arguments of `mvm pod stats`, which are those of `podman pod stats`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct StatsCommand {
    /// IDs, beginnings of IDs, or names [default: all that run]
    #[arg(value_name = "POD")]
    pods: Vec<String>,

    /// Show all pods, and containers that do not run too
    #[arg(long, short, conflicts_with = "pods")]
    all: bool,

    /// Print once instead of each second
    #[arg(long)]
    no_stream: bool,

    /// Do not clear the terminal before each table
    #[arg(long)]
    no_reset: bool,

    /// Print json, "table TEMPLATE" or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
}

/// What a container of a pod used, and the bytes that its pod received and sent.
struct Seen {
    pod: String,
    kept: Kept,
    /// `None` where it does not run or does not answer.
    usage: Option<container::Usage>,
    net: (u64, u64),
    /// Its own limit of memory, or its VM's memory.
    limit: u64,
}

impl StatsCommand {
    /// Shows the table until its reader closes the pipe, or until none of the named pods is left.
    pub fn run(self) -> ExitCode {
        let mut code = exit_code::SUCCESS;
        for word in &self.pods {
            if let Err(error) = find(word) {
                complain(&chain(&error));
                code = exit_code::FAILURE;
            }
        }
        if code != exit_code::SUCCESS && self.pods.iter().all(|word| find(word).is_err()) {
            return code.into();
        }
        let mut before = usages(&self.look());
        each_second(code, || {
            let seen = self.look();
            let rows: Vec<Value> = seen
                .iter()
                .filter_map(|one| one.row(before.get(one.kept.entry.id.as_str()), self.all))
                .collect();
            show(!self.no_stream && !self.no_reset, &self.text(&rows)?)?;
            before = usages(&seen);
            Ok(self.no_stream || (seen.is_empty() && !self.pods.is_empty()))
        })
    }

    /// All containers that are meant, with what they use now.
    fn look(&self) -> Vec<Seen> {
        let pods: Vec<Kept> = match self.pods.is_empty() {
            true => list::all()
                .map(|(pods, _)| pods.into_iter().map(|pod| pod.kept).collect())
                .unwrap_or_default(),
            false => self.pods.iter().filter_map(|word| find(word).ok()).collect(),
        };
        let found = pods.iter().filter(|pod| pod.is_running || self.all).flat_map(|pod| {
            let vm = Registry::of_user().find(pod.entry.id.as_str()).ok().filter(|_| pod.is_running);
            let report = vm.as_ref().and_then(|vm| {
                let mut client =
                    Client::connect_with_limit(&vm.directory.join(CONTROL_SOCKET), ANSWER).ok()?;
                client.get::<MetricsReport>("/metrics.json").ok()
            });
            let sum = |counter| report.as_ref().map_or(0, |report| report.sum("net", counter));
            let (net, memory) =
                ((sum("rx_bytes"), sum("tx_bytes")), vm.map_or(0, |vm| vm.record.config.memory));
            let name = pod.entry.id.to_string();
            let all = containers(&pod.entry.id).unwrap_or_default();
            all.into_iter().map(move |kept| (name.clone(), kept, net, memory))
        });
        let found: Vec<_> = found.filter(|(_, kept, ..)| kept.is_running || self.all).collect();
        let usages = at_once(&found, |(_, kept, ..)| {
            let vm = Registry::of_user().find(kept.entry.id.as_str()).ok().filter(|_| kept.is_running)?;
            container::usage(&vm.directory, kept.entry.id.as_str()).ok()
        });
        found
            .into_iter()
            .zip(usages)
            .map(|((pod, kept, net, memory), usage)| {
                let limit = memory_limit(&kept.entry).unwrap_or(memory);
                Seen { pod, kept, usage, net, limit }
            })
            .collect()
    }

    fn text(&self, rows: &[Value]) -> io::Result<String> {
        match self.format.as_ref().filter(|format| !format.is_default()) {
            None => Ok(table(rows, table::terminal_width())),
            // As podman, an array.
            Some(Format::Json) => Ok(crate::json(&rows)),
            Some(format) => format.list(COLUMNS, &[], rows).map_err(no_form),
        }
    }
}

/// The table without a form. On a terminal names are cut, and columns from the right left out where that is not enough.
fn table(rows: &[Value], width: Option<usize>) -> String {
    let shown = ["Pod", "CID", "Name", "CPU", "MemUsage", "Mem", "NetIO", "BlockIO", "PIDS"];
    let shown = shown.map(|field| (field, (field == "Name").then_some(Cut::End)));
    fitted_table(COLUMNS, &shown, rows, width, &["BlockIO", "NetIO", "PIDS", "Mem"])
}

fn usages(seen: &[Seen]) -> HashMap<String, container::Usage> {
    seen.iter().filter_map(|one| Some((one.kept.entry.id.to_string(), one.usage?))).collect()
}

impl Seen {
    /// Its row, where it was seen `before`; `None` of one that does not run, unless `all` are wanted.
    fn row(&self, before: Option<&container::Usage>, all: bool) -> Option<Value> {
        let entry = &self.kept.entry;
        let name = entry.name.as_ref().map_or(entry.id.as_str(), VmName::as_str);
        let none = |count: usize| vec!["--"; count].join(" / ");
        let cells = match self.usage {
            None if !all => return None,
            None => [none(1), none(2), none(2), none(1), none(2), none(1)],
            Some(now) => {
                let used = of_agent(before.copied(), now, self.limit);
                let (memory, limit) = (used.memory_bytes, used.memory_limit_bytes);
                [
                    format!("{:.2}%", used.cpu_percent),
                    format!("{} / {}", bytes(memory), bytes(limit)),
                    format!("{memory} / {limit}"),
                    format!("{:.2}%", percent(memory, limit)),
                    format!("{} / {}", bytes(self.net.0), bytes(self.net.1)),
                    used.pids.to_string(),
                ]
            }
        };
        let [cpu, usage, usage_bytes, memory, net, pids] = cells;
        // Of disks it is not counted by container.
        Some(json!({
            "Pod": self.pod, "CID": entry.id.to_string(), "Name": name, "CPU": cpu, "MemUsage": usage,
            "MemUsageBytes": usage_bytes, "Mem": memory, "NetIO": net, "BlockIO": none(2), "PIDS": pids,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_podmans_and_fits_a_terminal() {
        let row = json!({
            "Pod": "0123456789ab", "CID": "ba9876543210", "Name": "n".repeat(63), "CPU": "6399.99%", "MemUsage": "1023.0MiB / 1023.0GiB",
            "Mem": "100.00%", "NetIO": "1.0KiB / 2.0KiB", "BlockIO": "-- / --", "PIDS": "12",
        });
        let heading = |width| {
            table(std::slice::from_ref(&row), width)
                .lines()
                .next()
                .unwrap()
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(heading(None), "POD CID NAME CPU % MEM USAGE/ LIMIT MEM % NET IO BLOCK IO PIDS");
        assert_eq!(heading(Some(80)), "POD CID NAME CPU % MEM USAGE/ LIMIT");
        for width in 77..200 {
            let text = table(std::slice::from_ref(&row), Some(width));
            assert!(text.lines().all(|line| line.chars().count() <= width), "{width}: {text}");
        }
    }
}
