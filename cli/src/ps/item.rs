//! What there is to list: VMs and containers, those that run and those that have ended.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use instance::api::{InstanceInfo, State};
use instance::{
    Archive, CONTROL_SOCKET, Client, End, Entry, InstanceError, Kept, Kind, Registry, Running, VmId, VmName,
    time,
};
use jail::{Layer, Mode, Report, State as LayerState};
use serde_json::{Map, Value, json};

use crate::images::human;
use crate::targets::{self, ANSWER};

/// One of them.
pub struct Item {
    /// What is kept of it; a VM of a foreground `mvm boot` has nothing.
    pub entry: Option<Entry>,
    /// Where it runs.
    pub running: Option<Running>,
    /// How it ended.
    pub end: Option<End>,
    /// `created`, `restarting`, `running`, `paused`, `exited`, or `not responding`.
    pub state: &'static str,
    /// Its health, as `State.Health` of docker, where it is checked.
    pub health: Option<Value>,
    /// The pod that it is in, and its name.
    pub pod: Option<(VmId, Option<VmName>)>,
}

/// All of this user's, the oldest first, and what is wrong with those that can't be read. Those that have ended are
/// left out unless `all` is set.
pub fn items(all: bool) -> Result<(Vec<Item>, Vec<InstanceError>), InstanceError> {
    let (running, mut damaged) = Registry::of_user().running()?;
    let (kept, damaged_records) = match Archive::of_user() {
        Ok(archive) => archive.all()?,
        // Nothing can have been kept.
        Err(_) => (Vec::new(), Vec::new()),
    };
    damaged.extend(damaged_records);
    // They are listed by `mvm pod ps`.
    let running: Vec<_> = running.into_iter().filter(|vm| !container::is_pod(&vm.directory)).collect();
    let (pods, kept): (Vec<_>, Vec<_>) = kept.into_iter().partition(|kept| kept.entry.kind == Kind::Pod);
    let pods: BTreeMap<VmId, Option<VmName>> =
        pods.into_iter().map(|kept| (kept.entry.id, kept.entry.name)).collect();
    let pod_of = |entry: Option<&Entry>| {
        let id = entry?.pod.clone()?;
        let name = pods.get(&id).cloned().flatten();
        Some((id, name))
    };
    let mut entries: BTreeMap<String, Kept> =
        kept.into_iter().map(|kept| (kept.entry.id.to_string(), kept)).collect();
    let mut items: Vec<Item> = targets::at_once(&running, |vm| (vm.clone(), state(vm)))
        .into_iter()
        .map(|(vm, state)| {
            let kept = entries.remove(vm.record.id.as_str());
            let health = kept.as_ref().and_then(Kept::health);
            let entry = kept.map(|kept| kept.entry);
            let pod = pod_of(entry.as_ref());
            Item { entry, running: Some(vm), end: None, state, health, pod }
        })
        .collect();
    let is_restarting = |kept: &Kept| kept.is_restarting();
    let (restarting, others): (Vec<_>, Vec<_>) = entries.into_values().partition(is_restarting);
    items.extend(restarting.into_iter().map(|kept| {
        let (end, health) = (Some(kept.last_end()), kept.health());
        let pod = pod_of(Some(&kept.entry));
        Item { entry: Some(kept.entry), running: None, end, state: "restarting", health, pod }
    }));
    let (saved, others): (Vec<_>, Vec<_>) = others.into_iter().partition(Kept::is_saved);
    items.extend(saved.into_iter().map(|kept| {
        let (health, pod) = (kept.health(), pod_of(Some(&kept.entry)));
        Item { entry: Some(kept.entry), running: None, end: None, state: "paused", health, pod }
    }));
    if all {
        // Those that run are in another runtime directory.
        let ended = others.into_iter().filter_map(|kept| {
            if kept.is_created() && !kept.is_running {
                let pod = pod_of(Some(&kept.entry));
                let entry = Some(kept.entry);
                return Some(Item { entry, running: None, end: None, state: "created", health: None, pod });
            }
            let (end, health) = (kept.end()?, kept.health());
            let pod = pod_of(Some(&kept.entry));
            Some(Item {
                entry: Some(kept.entry),
                running: None,
                end: Some(end),
                state: "exited",
                health,
                pod,
            })
        });
        items.extend(ended);
    }
    items.sort_by_cached_key(|item| (item.created(), item.id()));
    Ok((items, damaged))
}

/// The state in words. One whose process is stopped or too busy to answer is "not responding".
fn state(vm: &Running) -> &'static str {
    // A container of a pod is paused with all of it, or by itself.
    let pod = container::pod_directory(&vm.directory);
    let directory = pod.as_deref().unwrap_or(&vm.directory);
    if pod.is_none() && vm.record.running_process().is_stopped() {
        return "not responding";
    }
    let socket = directory.join(CONTROL_SOCKET);
    let ask = || Client::connect_with_limit(&socket, ANSWER)?.get::<InstanceInfo>("/");
    match ask().map(|info| info.state) {
        Ok(State::Running) if pod.is_some() => {
            let is_frozen = container::is_frozen(&vm.directory, vm.record.id.as_str());
            if is_frozen.unwrap_or(false) { "paused" } else { "running" }
        }
        Ok(State::Running) => "running",
        Ok(State::Paused) => "paused",
        Err(_) => "not responding",
    }
}

/// A command with its arguments, of which docker puts those with a space between quotation marks.
fn joined(command: &[String]) -> String {
    let quoted = |(index, word): (usize, &String)| match index > 0 && word.contains(' ') {
        true => format!("'{word}'"),
        false => word.clone(),
    };
    command.iter().enumerate().map(quoted).collect::<Vec<_>>().join(" ")
}

fn seconds_since(milliseconds: u64) -> i64 {
    i64::try_from(time::now().saturating_sub(milliseconds) / 1000).unwrap_or(i64::MAX)
}

fn date(milliseconds: u64) -> String {
    time::rfc3339(Duration::from_millis(milliseconds))
}

/// How the process of a VM is confined, by the file in its directory: the mode, and each layer with what it is, or why
/// it is missing.
fn jail(directory: &Path) -> Value {
    let text = std::fs::read(directory.join(vmm::JAIL)).ok();
    let report = text.and_then(|text| serde_json::from_slice::<Report>(&text).ok());
    let Some(report) = report else { return json!({ "Mode": Mode::Off.as_str(), "Layers": {} }) };
    let layer = |(layer, state): &(Layer, LayerState)| {
        let state = match state {
            LayerState::On(text) if text.is_empty() => "on".to_owned(),
            LayerState::On(text) => format!("on: {text}"),
            LayerState::Missing(why) => format!("missing: {why}"),
        };
        (layer.as_str().to_owned(), Value::from(state))
    };
    let layers: Map<_, _> = report.layers.iter().map(layer).collect();
    json!({ "Mode": report.mode.as_str(), "Layers": layers })
}

impl Item {
    /// Its ID.
    pub fn id(&self) -> String {
        let entry = self.entry.as_ref().map(|entry| entry.id.to_string());
        entry.or_else(|| self.running.as_ref().map(|vm| vm.record.id.to_string())).unwrap_or_default()
    }

    /// Its name, if it has one.
    pub fn name(&self) -> Option<String> {
        let own = self.entry.as_ref().and_then(|entry| entry.name.as_ref());
        own.or_else(|| self.running.as_ref().and_then(|vm| vm.record.name.as_ref())).map(ToString::to_string)
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.entry.as_ref().map_or(Kind::Vm, |entry| entry.kind)
    }

    /// When it was made, in milliseconds since 1970.
    pub fn created(&self) -> u64 {
        let own = self.entry.as_ref().map(|entry| entry.created);
        own.or_else(|| self.running.as_ref().map(|vm| vm.record.created.saturating_mul(1000))).unwrap_or(0)
    }

    /// Its image, or its root disk.
    pub fn image(&self) -> String {
        let of_record = || self.running.as_ref().and_then(|vm| vm.record.config.rootfs.clone());
        let own = self.entry.as_ref().map(|entry| entry.image.clone());
        own.or_else(of_record).unwrap_or_else(|| "-".into())
    }

    /// Its command, or its kernel.
    pub fn command(&self) -> String {
        let of_record = || self.running.as_ref().map(|vm| vm.record.config.kernel.clone());
        let own = self.entry.as_ref().map(|entry| joined(&entry.command));
        own.or_else(of_record).unwrap_or_default()
    }

    /// Its exit code, once it has ended.
    pub fn exit_code(&self) -> Option<u8> {
        self.end.as_ref().map(|end| end.code)
    }

    /// Whether it runs, paused or not.
    pub fn is_running(&self) -> bool {
        !matches!(self.state, "created" | "exited")
    }

    /// `starting`, `healthy` or `unhealthy`, where its health is checked.
    pub fn health_status(&self) -> Option<&str> {
        self.health.as_ref()?.get("Status")?.as_str()
    }

    /// How it is, as docker says it.
    pub fn status(&self) -> String {
        if let Some(end) = &self.end {
            let word = if self.state == "restarting" { "Restarting" } else { "Exited" };
            let ago = match end.finished {
                0 => String::new(),
                finished => format!(" {} ago", human::duration(seconds_since(finished))),
            };
            return format!("{word} ({}){ago}", end.code);
        }
        if self.state == "created" {
            return "Created".into();
        }
        if self.state == "paused" && self.running.is_none() {
            return "Saved".into();
        }
        let started = self.entry.as_ref().and_then(|entry| entry.started).unwrap_or_else(|| self.created());
        let up = human::duration(seconds_since(started));
        match self.state {
            "paused" => format!("Up {up} (Paused)"),
            "not responding" => format!("Up {up} (not responding)"),
            _ => match self.health_status() {
                None => format!("Up {up}"),
                Some("starting") => format!("Up {up} (health: starting)"),
                Some(status) => format!("Up {up} ({status})"),
            },
        }
    }

    /// Its network, by docker's name of the mode.
    pub fn network(&self) -> Option<&str> {
        self.entry.as_ref()?.details.pointer("/HostConfig/NetworkMode")?.as_str()
    }

    /// Bytes on the disk of what is kept of it.
    pub fn disk_usage(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        let Some(entry) = &self.entry else { return 0 };
        let files = Archive::of_user().map(|archive| std::fs::read_dir(archive.directory(&entry.id)));
        let files = files.ok().and_then(Result::ok).into_iter().flatten().flatten();
        files.filter_map(|file| file.metadata().ok()).map(|metadata| metadata.blocks() * 512).sum()
    }

    /// A label of it.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.entry.as_ref()?.labels.get(name).map(String::as_str)
    }

    /// The fields for `--format`, by docker's names.
    pub fn fields(&self, full: bool) -> Value {
        let labels = self.entry.as_ref().map(|entry| &entry.labels);
        let labels: Vec<String> =
            labels.into_iter().flatten().map(|(name, value)| format!("{name}={value}")).collect();
        let command = self.command();
        let short: String = if full || command.chars().count() <= 20 {
            command
        } else {
            command.chars().take(19).chain(['…']).collect()
        };
        let details = self.entry.as_ref().map_or(&Value::Null, |entry| &entry.details);
        let mounts = details.get("Mounts").and_then(Value::as_array).into_iter().flatten();
        // A volume by its name.
        let source =
            |mount: &'static str, value: &Value| value.get(mount).and_then(Value::as_str).map(str::to_owned);
        let mounts: Vec<String> =
            mounts.filter_map(|mount| source("Name", mount).or_else(|| source("Source", mount))).collect();
        json!({
            "ID": self.id(),
            "Names": self.name().unwrap_or_default(),
            "Kind": self.kind().as_str(),
            "Image": self.image(),
            "Command": format!("\"{short}\""),
            "CreatedAt": date(self.created()),
            "RunningFor": format!("{} ago", human::duration(seconds_since(self.created()))),
            "Status": self.status(),
            "State": if self.state == "not responding" { "running" } else { self.state },
            // None are published any more where it has ended.
            "Ports": self.entry.as_ref().filter(|_| self.running.is_some()).map_or_else(String::new, |entry| entry.ports.join(", ")),
            "Labels": labels.join(","),
            "Pod": self.pod.as_ref().map_or_else(String::new, |(id, _)| id.to_string()),
            "PodName": self.pod.as_ref().and_then(|(_, name)| name.as_ref()).map_or_else(String::new, ToString::to_string),
            "Mounts": mounts.join(","),
            "LocalVolumes": self.entry.as_ref().map_or(0, |entry| entry.volumes.len()).to_string(),
            "Networks": self.network().unwrap_or_default(),
        })
    }

    /// An object for programs, by the names of `--json`.
    pub fn json(&self) -> Value {
        let config = self.running.as_ref().map(|vm| &vm.record.config);
        let process = self.running.as_ref().map(|vm| &vm.record.process);
        json!({
            "id": self.id(),
            "name": self.name(),
            "kind": self.kind().as_str(),
            "state": self.state,
            "image": self.entry.as_ref().map(|entry| &entry.image),
            "command": self.entry.as_ref().map(|entry| &entry.command),
            "created": self.created() / 1000,
            "exit_code": self.exit_code(),
            "cpus": config.map(|config| config.cpus),
            "memory_bytes": config.map(|config| config.memory),
            "uptime_seconds": process.map(|process| process.age().as_secs()),
            "pid": process.map(|process| process.pid),
            "kernel": config.map(|config| &config.kernel),
            "rootfs": config.and_then(|config| config.rootfs.as_ref()),
            "control_socket": self.running.as_ref().map(Running::control_socket),
        })
    }

    /// What `mvm inspect` shows, by docker's names.
    pub fn inspect(&self) -> Value {
        let mut shown = self.entry.as_ref().map_or_else(|| json!({}), |entry| entry.details.clone());
        let Some(object) = shown.as_object_mut() else { return shown };
        let finished = self.end.as_ref().map_or(0, |end| end.finished);
        let started = self.entry.as_ref().and_then(|entry| entry.started);
        let none = "0001-01-01T00:00:00Z".to_owned();
        let mut state = json!({
            "Status": if self.state == "not responding" { "running" } else { self.state },
            "Running": self.is_running(),
            "Paused": self.state == "paused",
            "Restarting": self.state == "restarting",
            "OOMKilled": self.end.as_ref().is_some_and(|end| end.out_of_memory),
            "Dead": false,
            "Pid": self.running.as_ref().map_or(0, |vm| vm.record.process.pid),
            "ExitCode": self.exit_code().unwrap_or(0),
            "Error": self.end.as_ref().map_or("", |end| end.error.as_str()),
            "StartedAt": started.map_or_else(|| none.clone(), date),
            "FinishedAt": if finished > 0 { date(finished) } else { none.clone() },
        });
        if let Some((state, health)) = state.as_object_mut().zip(self.health.clone()) {
            state.insert("Health".into(), health);
        }
        object.insert("Id".into(), self.id().into());
        let restarts = self.entry.as_ref().map_or(0, |entry| entry.restarts);
        object.insert("RestartCount".into(), restarts.into());
        object.insert("Name".into(), self.name().map_or_else(String::new, |name| format!("/{name}")).into());
        object.insert("Kind".into(), self.kind().as_str().into());
        object.insert("Created".into(), date(self.created()).into());
        object.insert("State".into(), state);
        object.insert(
            "Pod".into(),
            self.pod.as_ref().map_or_else(String::new, |(id, _)| id.to_string()).into(),
        );
        if let Some(vm) = &self.running {
            let config = &vm.record.config;
            let socket = vm.control_socket();
            let vm = json!({
                "Cpus": config.cpus,
                "MemoryBytes": config.memory,
                "Kernel": config.kernel,
                "Rootfs": config.rootfs,
                "ControlSocket": socket,
                "Jail": jail(&vm.directory),
            });
            object.insert("Vm".into(), vm);
        }
        shown
    }
}
