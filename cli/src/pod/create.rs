//! `mvm pod create`.

use std::net::IpAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use clap::Args;
use container::{
    MountError, MountOption, MountSource, NetworkOption, PodFolder, PodFolders, PodOptions, PodSource,
    PodVolume, PortMapping, RunOptions,
};
use instance::{
    Archive, Entry, Format, InstanceError, Kind, Phase, Process, VmId, VmName, VolumeDriver, VolumeName,
    Volumes, time,
};
use serde_json::json;
use vmm::MemorySize;

use super::find;
use crate::defaults::{Defaults, TemplateUse};
use crate::process::ExitCode;
use crate::run::{default_network, host, label, milli_cpus, word};
use crate::values::check_memory;
use crate::{chain, complain, events, exit_code, print};

const EXAMPLES: &str = "\
Examples:
  mvm pod create --name web -p 8080:80 -m 2g
  mvm run -d --pod web nginx";

/// Arguments of `mvm pod create`, which are those of `podman pod create`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct CreateCommand {
    /// Set the pod's name
    #[arg(long, short, value_name = "NAME", conflicts_with = "pod_name")]
    name: Option<VmName>,

    /// Set the host name [default: the pod's name]
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,

    /// Connect the pod: user, none, or user,host
    ///
    /// As `mvm run --network`.
    #[arg(long, value_name = "NET", alias = "net")]
    network: Option<NetworkOption>,

    /// Publish a port on the host: 8080:80
    ///
    /// As `mvm run --publish`.
    #[arg(long, short, value_name = "PORTS")]
    publish: Vec<PortMapping>,

    /// Add a line to /etc/hosts: NAME:IP
    #[arg(long, value_name = "HOST", value_parser = host)]
    add_host: Vec<(String, String)>,

    /// Set a resolver's address
    #[arg(long, value_name = "IP")]
    dns: Vec<IpAddr>,

    /// Set a domain that names are looked up in
    #[arg(long, value_name = "DOMAIN", value_parser = word)]
    dns_search: Vec<String>,

    /// Set an option of resolv.conf
    #[arg(long, value_name = "OPTION", value_parser = word, alias = "dns-opt")]
    dns_option: Vec<String>,

    /// Limit the memory of all containers together, as in 2g
    #[arg(long, short, value_name = "SIZE")]
    memory: Option<MemorySize>,

    /// Limit the processor time of all containers together, as in 1.5
    #[arg(long, value_name = "N", value_parser = milli_cpus)]
    cpus: Option<u64>,

    /// Set the size of /dev/shm, which they share
    #[arg(long, value_name = "SIZE")]
    shm_size: Option<MemorySize>,

    /// Let containers mount a folder or file of the host, or a volume: HOSTPATH, or HOSTPATH:PATH, or NAME:PATH
    ///
    /// HOSTPATH alone, and NAME of a volume of --driver shared, are what -v of the pod's containers can mount, with
    /// what is below. With :PATH all of them have it there. Behind it may follow :ro. Volumes that are disks and
    /// sockets of the host need not be named: -v of a container takes them.
    #[arg(long, short, value_name = "VOLUME")]
    volume: Vec<PodVolume>,

    /// Confine the VM's process on the host: best-effort, strict or off
    ///
    /// As `mvm run --jail`.
    #[arg(long, value_name = "MODE", value_parser = crate::values::jail_mode)]
    jail: Option<jail::Mode>,

    /// Boot the VM's kernel: do not start from a template (see `mvm template`)
    #[arg(long, env = "MVM_COLD", hide_env = true, value_parser = clap::builder::FalseyValueParser::new())]
    cold: bool,

    /// Share more than ipc, net and uts, which are always shared: pid
    ///
    /// With pid the containers see each other's processes, and reach their files through /proc.
    #[arg(long, value_name = "NAMES", value_parser = shares, default_value = "ipc,net,uts", hide_default_value = true)]
    share: Shares,

    /// Set what becomes of the pod's VM when no container runs: stop or continue
    ///
    /// With stop it ends 10 s after the last container, and starts with the next one.
    #[arg(
        long,
        value_name = "POLICY",
        default_value = "stop",
        value_parser = ["stop", "continue"],
        hide_possible_values = true
    )]
    exit_policy: String,

    /// Set a label: NAME=VALUE, or NAME
    #[arg(long, short, value_name = "LABEL", value_parser = label)]
    label: Vec<(String, String)>,

    /// The pod's name
    #[arg(value_name = "NAME")]
    pod_name: Option<VmName>,
}

/// Whether processes are shared too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shares(bool);

/// Reads names of namespaces with commas between them.
fn shares(text: &str) -> Result<Shares, String> {
    let known = ["ipc", "net", "uts", "pid"];
    let names: Vec<&str> = text.trim_start_matches('+').split(',').collect();
    match names.iter().find(|name| !known.contains(name)) {
        Some(name) => Err(format!(
            "invalid namespace {name:?}: use pid; ipc, net and uts are always shared, and others never"
        )),
        None => Ok(Shares(names.contains(&"pid"))),
    }
}

impl CreateCommand {
    /// Makes the pod.
    pub fn run(self) -> ExitCode {
        let name = self.name.clone().or_else(|| self.pod_name.clone());
        let made = self.options().and_then(|options| make(name, options).map_err(|error| chain(&error)));
        match made {
            Ok((id, _)) => print(format!("{id}\n").as_bytes(), exit_code::SUCCESS),
            Err(message) => {
                complain(&message);
                exit_code::CONTAINER.into()
            }
        }
    }

    fn options(self) -> Result<PodOptions, String> {
        let memory = self.memory.map(MemorySize::bytes).filter(|bytes| *bytes > 0);
        check_memory(memory)?;
        let defaults = Defaults::read()?;
        let options = RunOptions {
            network: self.network.unwrap_or_else(|| default_network(!self.publish.is_empty())),
            hostname: self.hostname,
            publish: self.publish,
            hosts: self.add_host,
            dns: self.dns,
            dns_search: self.dns_search,
            dns_options: self.dns_option,
            memory,
            milli_cpus: self.cpus,
            shm_size: self.shm_size.map(MemorySize::bytes),
            labels: self.label,
            jail: self.jail.or(defaults.jail).unwrap_or_default(),
            jail_ids: defaults.jail_ids,
            cold: self.cold || defaults.templates == Some(TemplateUse::Off),
            ..RunOptions::default()
        };
        let volumes = Volumes::of_user().map_err(|error| chain(&error))?;
        let (mounts, folders) = split(self.volume, &volumes)?;
        // What can't be served is said now.
        drop(PodFolders::open(&folders, &volumes).map_err(|error| chain(&error))?);
        let pod = PodOptions {
            name: String::new(),
            options: RunOptions { mounts, ..options },
            shares_processes: self.share.0,
            continues: self.exit_policy == "continue",
            folders,
        };
        // Its name, which is good for a host, comes later.
        PodOptions { name: "pod".into(), ..pod.clone() }.check().map_err(|error| chain(&error))?;
        container::published(&pod.options, &container::ImageConfig::default())
            .map_err(|error| chain(&error))?;
        Ok(pod)
    }
}

/// What all containers mount, and what the pod's VM needs for that and for what they may mount.
fn split(wanted: Vec<PodVolume>, volumes: &Volumes) -> Result<(Vec<MountOption>, Vec<PodFolder>), String> {
    let (mut mounts, mut folders): (Vec<MountOption>, Vec<PodFolder>) = (Vec::new(), Vec::new());
    for wanted in wanted {
        let mount = match wanted {
            PodVolume::Folder(folder) => {
                folders.push(folder);
                continue;
            }
            PodVolume::Mount(mount) => mount,
        };
        if mounts.iter().any(|other| other.target == mount.target) {
            return Err(MountError::Duplicate(mount.target).to_string());
        }
        let source = match &mount.source {
            // Containers reach it by themselves.
            MountSource::Bind { path, .. } if is_socket(path) => None,
            MountSource::Bind { path, .. } => Some(PodSource::Path(path.clone())),
            MountSource::Volume(volume) => volume.name.as_ref().and_then(|name| {
                let known = volumes.find(name).ok()?;
                (known.record.driver == VolumeDriver::Shared).then(|| PodSource::Volume(name.clone()))
            }),
            MountSource::Tmpfs(_) => None,
        };
        folders.extend(source.map(|source| PodFolder { source, read_only: mount.read_only }));
        mounts.push(mount);
    }
    Ok((mounts, folders))
}

fn is_socket(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.file_type().is_socket())
}

/// Makes a pod; its ID, and what it was asked to be.
pub fn make(name: Option<VmName>, options: PodOptions) -> Result<(VmId, PodOptions), InstanceError> {
    let archive = Archive::of_user()?;
    let id = archive.new_id()?;
    let text = name.as_ref().map_or_else(|| id.to_string(), ToString::to_string);
    let options = PodOptions { name: text, ..options };
    let entry = Entry {
        format: Format::default(),
        id: id.clone(),
        name,
        kind: Kind::Pod,
        created: time::now(),
        started: None,
        phase: Phase::Created,
        restarts: 0,
        pod: None,
        process: Process::own()?,
        removes: false,
        image: String::new(),
        image_id: None,
        command: Vec::new(),
        ports: Vec::new(),
        volumes: volumes_of(&options),
        labels: options.options.labels.iter().cloned().collect(),
        details: json!({}),
    };
    let keep = archive.create(entry)?;
    if let Err(source) = keep.set_order(&options) {
        let path = keep.directory().to_owned();
        let _ = archive.remove_own(&keep);
        return Err(InstanceError::Directory { doing: "write to", path, source });
    }
    events::note(keep.entry(), "create", &[]);
    drop(keep);
    // It can be found now.
    find(id.as_str()).map(|kept| (kept.entry.id, options))
}

/// The volumes that are not removed as long as the pod is there.
fn volumes_of(options: &PodOptions) -> Vec<VolumeName> {
    let of_folders = options.folders.iter().filter_map(|folder| match &folder.source {
        PodSource::Volume(name) => Some(name.clone()),
        PodSource::Path(_) => None,
    });
    let mut names: Vec<_> = options.options.volumes().into_iter().chain(of_folders).collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_shared_where_that_is_said() {
        for (text, expected) in
            [("ipc,net,uts", Ok(false)), ("pid", Ok(true)), ("+pid", Ok(true)), ("net,pid", Ok(true))]
        {
            assert_eq!(shares(text).map(|shares| shares.0), expected, "{text}");
        }
        for bad in ["", "user", "cgroup,pid", "pid,"] {
            assert!(shares(bad).unwrap_err().contains("invalid namespace"), "{bad}");
        }
    }
}
