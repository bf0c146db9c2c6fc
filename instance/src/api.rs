//! The requests and responses of a VM's control socket. The names are Firecracker's where it has the same thing; the
//! resource `/openapi.json` describes them all.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The answer to `GET /`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceInfo {
    /// The program's name.
    pub app_name: String,
    /// The VM's ID.
    pub id: String,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Whether it runs.
    pub state: State,
    /// The program's version.
    pub vmm_version: String,
}

/// Whether a VM runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// It does.
    Running,
    /// Its vCPUs wait.
    Paused,
}

/// The answer to `GET /version`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Version {
    /// The program's version.
    pub mvm_version: String,
}

/// The answer to `GET /machine-config`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfiguration {
    /// Number of vCPUs.
    pub vcpu_count: u32,
    /// RAM in MiB, rounded down.
    pub mem_size_mib: u64,
}

/// The answer to `GET /balloon`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Balloon {
    /// The size that it should have: MiB taken from the guest.
    pub amount_mib: u64,
    /// Whether the guest takes memory back before it kills a process for lack of it.
    pub deflate_on_oom: bool,
    /// Whether memory that the guest has free goes to the host without being asked for.
    pub free_page_reporting: bool,
}

/// The request `PATCH /balloon`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonUpdate {
    /// MiB to be taken from the guest.
    pub amount_mib: u64,
}

/// The answer to `GET /drives/{drive_id}`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drive {
    /// What the guest calls it, such as `vda`.
    pub drive_id: String,
    /// The file or block device.
    pub path_on_host: String,
    /// Whether the guest may only read it.
    pub is_read_only: bool,
    /// The size that the guest sees.
    pub size_bytes: u64,
}

/// The request `PATCH /drives/{drive_id}`. Without a size, the guest is told the size that the file has.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriveUpdate {
    /// The same as in the path.
    pub drive_id: String,
    /// The size that the file is to have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Whether the disk may become smaller, by which it loses data.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shrink: bool,
}

/// What a guest says of its memory, by the names of `openapi.json`; what it never said is missing.
pub type GuestStatistics = BTreeMap<String, u64>;

/// The answer to `GET /balloon/statistics`.
#[derive(Debug, Serialize, Deserialize)]
pub struct BalloonStatistics<Guest = GuestStatistics> {
    /// Pages of 4 KiB that it should have.
    pub target_pages: u64,
    /// Pages of 4 KiB that the guest says it has.
    pub actual_pages: u64,
    /// The same as `target_pages` in MiB, rounded down.
    pub target_mib: u64,
    /// The same as `actual_pages` in MiB, rounded down.
    pub actual_mib: u64,
    /// What the guest last said of its memory.
    #[serde(flatten)]
    pub guest: Guest,
}

/// The request `PUT /snapshot/create`. The state and the memory go to two open files that come with it.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotCreate {
    /// What is saved.
    #[serde(default)]
    pub snapshot_type: SnapshotType,
    /// A path for the state, which a VM does not open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_path: Option<String>,
    /// A path for the memory, which a VM does not open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_file_path: Option<String>,
    /// The VM, which is paused, is not resumed as long as the other end of the socket that comes with it is open.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stays_paused: bool,
}

/// How much of a VM is saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotType {
    /// All of it.
    #[default]
    Full,
}

/// The request `PATCH /vm`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmUpdate {
    /// What is to become of it.
    pub state: WantedState,
}

/// What is to become of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WantedState {
    /// Its vCPUs wait.
    Paused,
    /// They go on.
    Resumed,
}

/// The request `PUT /actions`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Action {
    /// What to do.
    pub action_type: ActionType,
}

/// What can be done to a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ActionType {
    /// Press its power button: there is no keyboard with these keys here, but what a guest makes of them is the same.
    SendCtrlAltDel,
    /// End it at once.
    Kill,
}

/// The answer where something is wrong.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// What.
    pub fault_message: String,
}
