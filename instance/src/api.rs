//! What requests and answers say. The names are Firecracker's where it has the same thing; `openapi.json` describes
//! them all.

use devices::virtio::balloon::{BalloonHandle, Statistics};
use serde::{Deserialize, Serialize};

use super::response::Response;
use crate::handle::VmHandle;

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
    /// Whether the guest takes memory back before it kills a process for want of it.
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

/// The answer to `GET /balloon/statistics`.
#[derive(Debug, Serialize, Deserialize)]
pub struct BalloonStatistics {
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
    pub guest: Statistics,
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

impl InstanceInfo {
    pub(super) fn of(vm: &VmHandle) -> Self {
        let config = vm.config();
        Self {
            app_name: "mvm".into(),
            id: config.id.as_ref().map(ToString::to_string).unwrap_or_default(),
            name: config.name.as_ref().map(ToString::to_string),
            state: if vm.is_paused() { State::Paused } else { State::Running },
            vmm_version: env!("CARGO_PKG_VERSION").into(),
        }
    }
}

impl Balloon {
    pub(super) fn of(balloon: &BalloonHandle) -> Self {
        // The device has both features, and no switch for them.
        Self { amount_mib: balloon.target() >> 20, deflate_on_oom: true, free_page_reporting: true }
    }
}

impl BalloonStatistics {
    /// The size of `balloon` now, and what its guest said.
    pub(super) fn of(balloon: &BalloonHandle, guest: Statistics) -> Self {
        let (target, actual) = (balloon.target(), balloon.actual());
        Self {
            target_pages: target >> 12,
            actual_pages: actual >> 12,
            target_mib: target >> 20,
            actual_mib: actual >> 20,
            guest,
        }
    }
}

/// Reads a request's body.
pub(super) fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Response> {
    serde_json::from_slice(body)
        .map_err(|error| Response::fault(400, &format!("the body is not what this request takes: {error}")))
}
