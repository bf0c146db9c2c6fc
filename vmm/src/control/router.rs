//! Which request does what.

use std::os::fd::OwnedFd;
use std::time::Duration;

use devices::virtio::balloon::BalloonHandle;
use instance::api::{
    Action, ActionType, BalloonUpdate, MachineConfiguration, Version, VmUpdate, WantedState,
};

use super::request::Request;
use super::response::Response;
use super::{answers, drives, snapshot};
use crate::handle::VmHandle;
use crate::metrics::prometheus;
use crate::pause::PauseError;

/// How long a guest may take to say how its memory is; one that is not busy takes less than a millisecond.
const STATISTICS_PATIENCE: Duration = Duration::from_secs(2);

/// What a request leads to.
pub(super) enum Outcome {
    /// An answer.
    Now(Response),
    /// Something that may take its time, and must not be done on the event loop; then an answer.
    Later(Task),
    /// The same, but nothing changes, so that it need not be done for a client that has gone.
    LaterIfWanted(Task),
}

/// What is done on a thread of its own.
pub(super) type Task = Box<dyn FnOnce(&VmHandle) -> Response + Send>;

/// What came with a request besides its head.
pub(super) struct Content<'a> {
    /// Its body.
    pub(super) body: &'a [u8],
    /// Files that were sent with it (SCM_RIGHTS), in their order.
    pub(super) files: Vec<OwnedFd>,
}

type Handler = fn(&VmHandle, Content<'_>) -> Result<Outcome, Response>;

/// A resource, and what each of its methods does.
pub(super) struct Route {
    pub(super) path: &'static str,
    pub(super) methods: &'static [(&'static str, Handler)],
}

/// The description of all this, which a test holds against the table below.
pub const OPENAPI: &str = include_str!("openapi.json");

pub(super) const ROUTES: &[Route] = &[
    Route { path: "/", methods: &[("GET", instance)] },
    Route { path: "/version", methods: &[("GET", version)] },
    Route { path: "/openapi.json", methods: &[("GET", openapi)] },
    Route { path: "/vm", methods: &[("PATCH", update_vm)] },
    Route { path: "/vm/config", methods: &[("GET", config)] },
    Route { path: "/machine-config", methods: &[("GET", machine_config)] },
    Route { path: "/balloon", methods: &[("GET", balloon), ("PATCH", update_balloon)] },
    Route { path: "/balloon/statistics", methods: &[("GET", balloon_statistics)] },
    Route { path: "/actions", methods: &[("PUT", act)] },
    Route { path: "/snapshot/create", methods: &[("PUT", snapshot::create)] },
    Route { path: "/metrics", methods: &[("GET", metrics)] },
    Route { path: "/metrics.json", methods: &[("GET", metrics_json)] },
];

/// Does what `request`, with which `files` came, asks of `vm`.
pub(super) fn route(vm: &VmHandle, request: &Request<'_>, files: Vec<OwnedFd>) -> Outcome {
    if let Some(id) = request.path.strip_prefix(drives::PREFIX) {
        return drives::route(id, request);
    }
    let Some(route) = ROUTES.iter().find(|route| route.path == request.path) else {
        return Outcome::Now(Response::fault(404, "there is no such resource: see /openapi.json"));
    };
    // The body of the answer to HEAD is left out when it is written.
    let wanted = if request.method == "HEAD" { "GET" } else { request.method };
    let Some((_, handler)) = route.methods.iter().find(|(method, _)| *method == wanted) else {
        let mut methods: Vec<_> = route.methods.iter().map(|(method, _)| *method).collect();
        if methods.contains(&"GET") {
            methods.push("HEAD");
        }
        return Outcome::Now(Response::wrong_method(&methods));
    };
    handler(vm, Content { body: request.body, files }).unwrap_or_else(Outcome::Now)
}

fn now(response: Response) -> Result<Outcome, Response> {
    Ok(Outcome::Now(response))
}

fn instance(vm: &VmHandle, _content: Content<'_>) -> Result<Outcome, Response> {
    now(Response::json(&answers::instance(vm)))
}

fn version(_vm: &VmHandle, _content: Content<'_>) -> Result<Outcome, Response> {
    now(Response::json(&Version { mvm_version: env!("CARGO_PKG_VERSION").into() }))
}

fn openapi(_vm: &VmHandle, _content: Content<'_>) -> Result<Outcome, Response> {
    now(Response::text("application/json", OPENAPI))
}

fn update_vm(_vm: &VmHandle, content: Content<'_>) -> Result<Outcome, Response> {
    match super::body::read::<VmUpdate>(content.body)?.state {
        WantedState::Paused => Ok(Outcome::Later(Box::new(|vm| changed("pause", vm.pause())))),
        WantedState::Resumed => Ok(Outcome::Later(Box::new(|vm| changed("resume", vm.resume())))),
    }
}

fn changed(doing: &str, result: Result<(), PauseError>) -> Response {
    match result {
        Ok(()) => Response::done(),
        Err(error) => {
            Response::fault(400, &format!("cannot {doing} the VM: {}", devices::log::chain(&error)))
        }
    }
}

fn config(vm: &VmHandle, _content: Content<'_>) -> Result<Outcome, Response> {
    now(Response::json(&answers::config(vm)))
}

fn machine_config(vm: &VmHandle, _content: Content<'_>) -> Result<Outcome, Response> {
    let config = vm.config();
    now(Response::json(&MachineConfiguration {
        vcpu_count: config.cpus,
        mem_size_mib: config.memory.bytes() >> 20,
    }))
}

fn balloon_of(vm: &VmHandle) -> Result<&BalloonHandle, Response> {
    vm.balloon().ok_or_else(|| Response::fault(400, "this VM has no balloon: boot it with --balloon"))
}

fn balloon(vm: &VmHandle, _content: Content<'_>) -> Result<Outcome, Response> {
    now(Response::json(&answers::balloon(balloon_of(vm)?)))
}

fn update_balloon(vm: &VmHandle, content: Content<'_>) -> Result<Outcome, Response> {
    let balloon = balloon_of(vm)?;
    let asked = super::body::read::<BalloonUpdate>(content.body)?.amount_mib;
    let set = asked.checked_mul(1 << 20).map(|bytes| balloon.set_target(bytes));
    if let Some(Ok(())) = set {
        return now(Response::done());
    }
    let most = balloon.largest_target() >> 20;
    Err(Response::fault(
        400,
        &format!("a balloon of {asked} MiB is too large: this guest can give up {most} MiB at the most"),
    ))
}

fn balloon_statistics(vm: &VmHandle, _content: Content<'_>) -> Result<Outcome, Response> {
    balloon_of(vm)?;
    Ok(Outcome::LaterIfWanted(Box::new(|vm| match balloon_of(vm) {
        Ok(balloon) => {
            // A guest that is paused says nothing.
            let patience = if vm.is_paused() { Duration::ZERO } else { STATISTICS_PATIENCE };
            let said = balloon.refresh_statistics(patience);
            let (_, guest) = said.unzip();
            Response::json(&answers::balloon_statistics(balloon, guest.unwrap_or_default()))
        }
        Err(fault) => fault,
    })))
}

fn act(vm: &VmHandle, content: Content<'_>) -> Result<Outcome, Response> {
    match super::body::read::<Action>(content.body)?.action_type {
        ActionType::SendCtrlAltDel => Ok(Outcome::Later(Box::new(|vm| match vm.press_power_button() {
            Ok(()) => Response::done(),
            Err(error) => Response::fault(400, &format!("cannot press the guest's power button: {error}")),
        }))),
        ActionType::Kill => {
            vm.kill();
            now(Response::done())
        }
    }
}

fn metrics(vm: &VmHandle, _content: Content<'_>) -> Result<Outcome, Response> {
    let page = prometheus::page(&vm.metrics(), vm.identity(), vm.config(), vm.is_paused());
    now(Response::text(prometheus::CONTENT_TYPE, page))
}

fn metrics_json(vm: &VmHandle, _content: Content<'_>) -> Result<Outcome, Response> {
    now(Response::json(&vm.metrics()))
}
