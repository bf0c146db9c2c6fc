//! How the VM becomes the answers of [`instance::api`].

use devices::virtio::balloon::{BalloonHandle, Statistics};
use instance::Identity;
use instance::api::{Balloon, BalloonStatistics, InstanceInfo, State};
use serde::Serialize;

use crate::VmConfig;
use crate::handle::VmHandle;

/// Who the VM is and whether it runs.
pub(super) fn instance(vm: &VmHandle) -> InstanceInfo {
    let identity = vm.identity();
    InstanceInfo {
        app_name: "mvm".into(),
        id: identity.id.as_ref().map(ToString::to_string).unwrap_or_default(),
        name: identity.name.as_ref().map(ToString::to_string),
        state: if vm.is_paused() { State::Paused } else { State::Running },
        vmm_version: env!("CARGO_PKG_VERSION").into(),
    }
}

/// The answer to `GET /vm/config`.
#[derive(Serialize)]
pub(super) struct Described<'a> {
    #[serde(flatten)]
    identity: &'a Identity,
    #[serde(flatten)]
    config: &'a VmConfig,
}

/// Who the VM is and what it is made of.
pub(super) fn config(vm: &VmHandle) -> Described<'_> {
    Described { identity: vm.identity(), config: vm.config() }
}

/// The balloon's settings.
pub(super) fn balloon(balloon: &BalloonHandle) -> Balloon {
    // The device has both features, and no switch for them.
    Balloon { amount_mib: balloon.target() >> 20, deflate_on_oom: true, free_page_reporting: true }
}

/// The size of `balloon` now, and what its guest said.
pub(super) fn balloon_statistics(
    balloon: &BalloonHandle,
    guest: Statistics,
) -> BalloonStatistics<Statistics> {
    let (target, actual) = (balloon.target(), balloon.actual());
    BalloonStatistics {
        target_pages: target >> 12,
        actual_pages: actual >> 12,
        target_mib: target >> 20,
        actual_mib: actual >> 20,
        guest,
    }
}
