//! What `mvm inspect` shows of a container, by docker's names.

use container::{HealthCheck, Image, MountOption, MountSource, NetworkOption, entrypoint_and_command};
use instance::Volumes;
use serde_json::{Map, Value, json};
use vmm::PublishConfig;

use super::order::Order;

fn pairs(publish: &PublishConfig) -> impl Iterator<Item = (u16, u16)> {
    publish.host.clone().zip(publish.guest.clone())
}

fn address(publish: &PublishConfig) -> String {
    publish.address.map_or_else(|| "0.0.0.0".into(), |address| address.to_string())
}

/// Published ports as `mvm ps` shows them.
pub fn ports(publish: &[PublishConfig]) -> Vec<String> {
    let one = |publish: &PublishConfig| {
        let range = |range: &std::ops::RangeInclusive<u16>| match (range.start(), range.end()) {
            (start, end) if start == end => start.to_string(),
            (start, end) => format!("{start}-{end}"),
        };
        let (host, guest) = (range(&publish.host), range(&publish.guest));
        format!("{}:{host}->{guest}/{}", address(publish), publish.protocol)
    };
    publish.iter().map(one).collect()
}

fn bindings(publish: &[PublishConfig]) -> Value {
    let mut bindings = Map::new();
    for publish in publish {
        for (host, guest) in pairs(publish) {
            let binding = json!({ "HostIp": address(publish), "HostPort": host.to_string() });
            let key = format!("{guest}/{}", publish.protocol);
            if let Some(list) = bindings.entry(key).or_insert_with(|| Value::Array(Vec::new())).as_array_mut()
            {
                list.push(binding);
            }
        }
    }
    Value::Object(bindings)
}

/// Has `details` say what `mvm update` has changed.
pub fn update(details: &mut Value, order: &Order) {
    let Some(config) = details.get_mut("HostConfig").and_then(Value::as_object_mut) else { return };
    if let Value::Object(limits) = limits(order) {
        config.extend(limits);
    }
}

/// What `mvm update` may change.
fn limits(order: &Order) -> Value {
    let options = &order.options;
    json!({
        "Memory": options.memory.unwrap_or(0),
        "NanoCpus": options.milli_cpus.map_or(0, |milli| milli * 1_000_000),
        "PidsLimit": options.pids,
        "CpuShares": options.cpu_shares.unwrap_or(0),
        "CpusetCpus": options.cpu_set.as_ref().map(ToString::to_string).unwrap_or_default(),
        "MemoryReservation": options.memory_reservation.unwrap_or(0),
        "RestartPolicy": {
            "Name": order.restart.name(),
            "MaximumRetryCount": order.restart.most(),
        },
    })
}

/// What is mounted, as docker shows it.
fn mount(mount: &MountOption) -> Value {
    let mut shown = match &mount.source {
        MountSource::Bind { path, .. } => {
            json!({ "Type": "bind", "Source": path, "Propagation": "rprivate" })
        }
        MountSource::Volume(volume) => {
            let volumes = Volumes::of_user().ok();
            let place = volumes.as_ref().zip(volume.name.as_ref());
            let known = place.and_then(|(volumes, name)| volumes.find(name).ok());
            let driver = known.map_or(volume.driver, |known| known.record.driver);
            let source = place.map(|(volumes, name)| volumes.content_of(name, driver));
            json!({
                "Type": "volume", "Name": volume.name, "Source": source, "Driver": driver.as_str(), "Propagation": "",
            })
        }
        MountSource::Tmpfs(_) => json!({ "Type": "tmpfs", "Source": "", "Propagation": "" }),
    };
    if let Some(shown) = shown.as_object_mut() {
        shown.insert("Destination".into(), mount.target.clone().into());
        shown.insert("Mode".into(), "".into());
        shown.insert("RW".into(), (!mount.read_only).into());
    }
    shown
}

/// All that does not change while it runs.
pub fn details(order: &Order, image: &Image, id: &str, publish: &[PublishConfig]) -> Value {
    let options = &order.options;
    let (entrypoint, arguments) = entrypoint_and_command(&image.config, options);
    let command = [&entrypoint[..], &arguments].concat();
    // As with docker, none is null.
    let words = |words: Vec<String>| Some(words).filter(|words| !words.is_empty());
    let labels: Map<String, Value> =
        options.labels.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
    let env: Vec<&String> = image.config.env.iter().chain(&options.env).collect();
    let network = match &options.network {
        NetworkOption::None => "none",
        NetworkOption::User { .. } => "user",
        NetworkOption::Tap(..) => "tap",
        NetworkOption::Bridge(..) => "bridge",
    };
    let address =
        container::container_address(options).map(|address| address.to_string()).unwrap_or_default();
    let (cpus, memory) = container::size(options);
    let mut details = json!({
        "Path": command.first(),
        "Args": command.get(1..).unwrap_or_default(),
        "Image": image.id,
        "RestartCount": 0,
        "Config": {
            "Hostname": options.hostname.as_deref().unwrap_or(id),
            "User": options.user.as_ref().unwrap_or(&image.config.user),
            "Tty": options.terminal.is_some(),
            "OpenStdin": options.interactive,
            "StdinOnce": order.input_once,
            "Env": env,
            "Entrypoint": words(entrypoint),
            "Cmd": words(arguments),
            "Image": order.image_name,
            "WorkingDir": options.working_directory.as_ref().unwrap_or(&image.config.working_directory),
            "Labels": labels,
            "AttachStdin": order.attached.stdin,
            "AttachStdout": order.attached.stdout,
            "AttachStderr": order.attached.stderr,
            "StopSignal": options.stop_signal.as_ref().or(image.config.stop_signal.as_ref()),
            "StopTimeout": order.stop_timeout.map(|seconds| i64::try_from(seconds).unwrap_or(-1)),
            "Healthcheck": HealthCheck::new(image.config.health.as_ref(), &order.health).map(|check| check.shown()),
        },
        "HostConfig": {
            "AutoRemove": order.removes,
            "LogConfig": order.log_details.shown(order.log),
            "ContainerIDFile": order.cid_file.clone().unwrap_or_default(),
            "VolumesFrom": order.volumes_from,
            "NetworkMode": network,
            "PortBindings": bindings(publish),
            "OomScoreAdj": options.oom_score_adjustment.unwrap_or(0),
            "Init": options.init,
            "IpcMode": "private",
            "Ulimits": options.limits.iter().map(|ulimit| {
                let (soft, hard) = ulimit.values();
                json!({ "Name": ulimit.name, "Soft": soft, "Hard": hard })
            }).collect::<Vec<_>>(),
            "ShmSize": options.shm_size.unwrap_or(container::SHM_SIZE),
            "Privileged": options.privileged,
            "ReadonlyRootfs": options.read_only,
            "CapAdd": options.added_capabilities,
            "CapDrop": options.dropped_capabilities,
            "Dns": options.dns,
            "ExtraHosts": options.hosts.iter().map(|(name, ip)| format!("{name}:{ip}")).collect::<Vec<_>>(),
            "GroupAdd": options.groups,
            "Tmpfs": options.tmpfs.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
            "Sysctls": options.sysctls.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
        },
        "Mounts": options.mounts.iter().map(mount).collect::<Vec<_>>(),
        "NetworkSettings": { "IPAddress": address, "Ports": bindings(publish) },
        "Vm": { "Cpus": cpus, "MemoryBytes": memory },
    });
    update(&mut details, order);
    if let Some(config) = details.get_mut("HostConfig").and_then(Value::as_object_mut)
        && !options.annotations.is_empty()
    {
        let all = options.annotations.iter().cloned().map(|(name, value)| (name, value.into()));
        config.insert("Annotations".into(), Value::Object(all.collect()));
    }
    details
}
