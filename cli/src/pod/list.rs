//! `mvm pod ps` and `mvm pod inspect`.

use std::time::Duration;

use clap::Args;
use instance::{Archive, InstanceError, Kept, Kind, Registry, VmName, time};
use serde_json::{Value, json};

use super::{containers, find, options};
use crate::complaint::{Complaint, complete};
use crate::format::{Column, Filter, Filters, Format, fitted_table, matches_name};
use crate::images::human;
use crate::inspect::print_all;
use crate::process::ExitCode;
use crate::table::{self, Cut};
use crate::targets;
use crate::{chain, complain, exit_code, print};

const PS_EXAMPLES: &str = "\
Examples:
  mvm pod ps
  mvm pod ps --filter status=running --format '{{.Name}} {{.NumberOfContainers}}'";

const INSPECT_EXAMPLES: &str = "\
Examples:
  mvm pod inspect web
  mvm pod inspect --format '{{.State}}' web";

/// The fields of `--format`, and the headings of their columns.
const COLUMNS: &[Column] = &[
    ("Id", "POD ID"),
    ("Name", "NAME"),
    ("Status", "STATUS"),
    ("Created", "CREATED"),
    ("NumberOfContainers", "# OF CONTAINERS"),
    ("ContainerNames", "NAMES"),
    ("ContainerIds", "IDS"),
    ("Labels", "LABELS"),
    ("Ports", "PORTS"),
];

/// Arguments of `mvm pod ps`.
#[derive(Args)]
#[command(after_long_help = PS_EXAMPLES)]
pub struct PsCommand {
    /// List some only: NAME=VALUE
    ///
    /// Names are id, name, status, label and ctr-number. May be given more than once.
    #[arg(long, short, value_name = "FILTER")]
    filter: Vec<Filter>,

    /// Print in a form: json, table, or a Go template
    ///
    /// Fields are Id, Name, Status, Created, NumberOfContainers, ContainerNames, ContainerIds, Labels and Ports.
    #[arg(long, value_name = "FORM", conflicts_with = "quiet")]
    format: Option<Format>,

    /// Print only IDs
    #[arg(long, short)]
    quiet: bool,

    /// Do not shorten the table to the terminal's width
    #[arg(long, conflicts_with = "quiet")]
    no_trunc: bool,
}

/// Arguments of `mvm pod inspect`.
#[derive(Args)]
#[command(after_long_help = INSPECT_EXAMPLES)]
pub struct InspectCommand {
    /// Print in a form: json, or a Go template
    #[arg(long, short, value_name = "FORM")]
    format: Option<Format>,

    /// IDs, beginnings of IDs, or names
    #[arg(required = true, value_name = "POD")]
    pods: Vec<String>,
}

/// A pod with its containers.
pub struct Pod {
    pub kept: Kept,
    pub containers: Vec<Kept>,
    /// Its VM is paused.
    is_paused: bool,
}

/// The states of pods, as podman says them.
const STATES: [&str; 5] = ["Created", "Running", "Degraded", "Paused", "Exited"];

impl Pod {
    /// The pod with what is there of it.
    pub fn of(kept: Kept, containers: Vec<Kept>) -> Self {
        let is_paused = kept.is_running && is_paused(&kept);
        Self { kept, containers, is_paused }
    }

    /// How it is, in podman's words.
    fn status(&self) -> &'static str {
        let running = self.containers.iter().filter(|kept| kept.is_running).count();
        let were_started = self.containers.iter().any(|kept| !kept.is_created()) || !self.kept.is_created();
        match running {
            _ if self.is_paused => "Paused",
            0 if self.containers.is_empty() && self.kept.is_running => "Running",
            0 if were_started => "Exited",
            0 => "Created",
            some if some == self.containers.len() => "Running",
            _ => "Degraded",
        }
    }

    fn name(&self) -> String {
        let entry = &self.kept.entry;
        entry.name.as_ref().map_or_else(|| entry.id.to_string(), ToString::to_string)
    }

    /// The fields for `--format`, by podman's names.
    fn fields(&self) -> Value {
        let entry = &self.kept.entry;
        let ago = time::now().saturating_sub(entry.created) / 1000;
        let of =
            |one: &dyn Fn(&Kept) -> String| self.containers.iter().map(one).collect::<Vec<_>>().join(",");
        let name_of = |kept: &Kept| {
            kept.entry.name.as_ref().map_or_else(|| kept.entry.id.to_string(), ToString::to_string)
        };
        let labels = entry.labels.iter().map(|(name, value)| format!("{name}={value}"));
        json!({
            "Id": entry.id.to_string(),
            "Name": self.name(),
            "Status": self.status(),
            "Created": format!("{} ago", human::duration(i64::try_from(ago).unwrap_or(i64::MAX))),
            "NumberOfContainers": self.containers.len(),
            "ContainerNames": of(&name_of),
            "ContainerIds": of(&|kept| kept.entry.id.to_string()),
            "Labels": labels.collect::<Vec<_>>().join(","),
            "Ports": entry.ports.join(", "),
        })
    }

    /// What `mvm pod inspect` shows, by podman's names.
    fn inspect(&self) -> Result<Value, InstanceError> {
        let entry = &self.kept.entry;
        let pod = options(&self.kept)?;
        let mut shared = vec!["ipc", "net", "uts"];
        if pod.shares_processes {
            shared.push("pid");
        }
        let network = &pod.options;
        let state = |kept: &Kept| match (kept.is_running, kept.is_created()) {
            (true, _) if is_frozen(kept) => "paused",
            (true, _) => "running",
            (false, true) => "created",
            (false, false) => "exited",
        };
        let containers = self.containers.iter().map(|kept| {
            json!({
                "Id": kept.entry.id.to_string(),
                "Name": kept.entry.name.as_ref().map_or("", VmName::as_str),
                "State": state(kept),
            })
        });
        let (cpus, memory) = container::size(&pod.options);
        Ok(json!({
            "Id": entry.id.to_string(),
            "Name": self.name(),
            "Created": time::rfc3339(Duration::from_millis(entry.created)),
            "State": self.status(),
            "Pid": if self.kept.is_running { entry.process.pid } else { 0 },
            "ExitPolicy": if pod.continues { "continue" } else { "stop" },
            "Hostname": pod.hostname(),
            "Labels": entry.labels,
            "SharedNamespaces": shared,
            "NumContainers": self.containers.len(),
            "Containers": containers.collect::<Vec<_>>(),
            "InfraConfig": {
                "Ports": entry.ports,
                "DNSServer": network.dns,
                "DNSSearch": network.dns_search,
                "DNSOption": network.dns_options,
                "HostAdd": network.hosts.iter().map(|(name, ip)| format!("{name}:{ip}")).collect::<Vec<_>>(),
            },
            "Vm": { "Cpus": cpus, "MemoryBytes": memory },
        }))
    }
}

/// Whether the pod's VM is paused, as far as it says so.
pub fn is_paused(kept: &Kept) -> bool {
    let vm = Registry::of_user().find(kept.entry.id.as_str());
    vm.is_ok_and(|vm| targets::is_vm_paused(&vm.directory))
}

/// Whether a container of a pod is paused by itself or with it.
fn is_frozen(kept: &Kept) -> bool {
    Registry::of_user().find(kept.entry.id.as_str()).is_ok_and(|vm| targets::is_paused(&vm))
}

/// All pods, the newest first, and what is wrong with records that can't be read.
pub fn all() -> Result<(Vec<Pod>, Vec<InstanceError>), InstanceError> {
    let (kept, damaged) = Archive::of_user()?.all()?;
    let (pods, mut others): (Vec<_>, Vec<_>) =
        kept.into_iter().partition(|kept| kept.entry.kind == Kind::Pod);
    let pods = pods.into_iter().rev().map(|pod| {
        let (own, rest) = std::mem::take(&mut others)
            .into_iter()
            .partition(|kept| kept.entry.pod.as_ref() == Some(&pod.entry.id));
        others = rest;
        Pod::of(pod, own)
    });
    Ok((pods.collect(), damaged))
}

impl PsCommand {
    /// Lists this user's pods.
    pub fn run(self) -> ExitCode {
        complete(self.text().map(|text| print(text.as_bytes(), exit_code::SUCCESS)))
    }

    fn text(&self) -> Result<String, Complaint> {
        let known = ["id", "name", "status", "label", "label!", "ctr-number"];
        let filters = Filters::new(&self.filter, &known)?;
        if let Some(state) =
            filters.values("status").find(|state| !STATES.iter().any(|known| is_state(known, state)))
        {
            let expected = "created, running, degraded, paused or exited";
            return Err(crate::format::invalid("status", state, expected).into());
        }
        let (mut pods, damaged) = all().map_err(|error| Complaint::host(&error))?;
        damaged.iter().for_each(|error| complain(&chain(error)));
        pods.retain(|pod| {
            let labels = |name: &str| pod.kept.entry.labels.get(name).map(String::as_str);
            filters.allow("id", |id| pod.kept.entry.id.as_str().starts_with(id))
                && filters.allow("name", |name| matches_name(name, &pod.name()))
                && filters.allow("status", |state| is_state(pod.status(), state))
                && filters.allow("ctr-number", |number| pod.containers.len().to_string() == number)
                && filters.allow_labels(labels)
                && filters.allow_without_labels(labels)
        });
        if self.quiet {
            return Ok(pods.iter().map(|pod| format!("{}\n", pod.kept.entry.id)).collect());
        }
        let rows: Vec<Value> = pods.iter().map(Pod::fields).collect();
        match self.format.as_ref().filter(|format| !format.is_default()) {
            Some(format) => Ok(format.list(COLUMNS, &[], &rows)?),
            None => Ok(table(&rows, if self.no_trunc { None } else { table::terminal_width() })),
        }
    }
}

/// The table without a form.
fn table(rows: &[Value], width: Option<usize>) -> String {
    let shown = [
        ("Id", None),
        ("Name", Some(Cut::End)),
        ("Status", None),
        ("Created", None),
        ("NumberOfContainers", None),
    ];
    fitted_table(COLUMNS, &shown, rows, width, &["NumberOfContainers", "Created"])
}

fn is_state(state: &str, word: &str) -> bool {
    state.eq_ignore_ascii_case(word)
}

impl InspectCommand {
    /// Prints what is known of pods.
    pub fn run(self) -> ExitCode {
        print_all(self.format.as_ref(), &self.pods, |word| {
            let shown = find(word).and_then(|kept| {
                let containers = containers(&kept.entry.id)?;
                Pod::of(kept, containers).inspect()
            });
            shown.map_err(|error| chain(&error))
        })
    }
}
