//! The resource of a disk.

use instance::api::{Drive, DriveUpdate};

use super::request::Request;
use super::response::Response;
use super::router::Outcome;
use crate::handle::{RunningDisk, VmHandle};

/// What the paths of disks begin with; the rest is the ID.
pub(super) const PREFIX: &str = "/drives/";

/// The methods of a disk.
pub(super) const METHODS: &[&str] = &["GET", "PATCH"];

/// Does what `request` asks of the disk that is called `id`.
pub(super) fn route(id: &str, request: &Request<'_>) -> Outcome {
    let (id, later) = (id.to_owned(), Outcome::Later);
    match request.method {
        "GET" => later(Box::new(move |vm| answer(describe(vm, &id).map(|drive| Response::json(&drive))))),
        "PATCH" => match super::body::read::<DriveUpdate>(request.body) {
            Ok(update) => later(Box::new(move |vm| answer(resize(vm, &id, &update)))),
            Err(fault) => Outcome::Now(fault),
        },
        _ => Outcome::Now(Response::wrong_method(METHODS)),
    }
}

fn answer(result: Result<Response, Response>) -> Response {
    result.unwrap_or_else(|fault| fault)
}

/// The disk that the guest calls `id`, or that has this ID of its own.
fn find<'a>(vm: &'a VmHandle, id: &str) -> Result<RunningDisk<'a>, Response> {
    let mut found: Vec<_> = vm.disks().filter(|disk| disk.name == id).collect();
    if found.is_empty() {
        found = vm.disks().filter(|disk| disk.config.id.as_deref() == Some(id)).collect();
    }
    let names = |disks: &mut dyn Iterator<Item = RunningDisk<'_>>| {
        disks.map(|disk| disk.name).collect::<Vec<_>>().join(", ")
    };
    match found.len() {
        0 if vm.disks().next().is_none() => Err(Response::fault(404, "this VM has no disks")),
        0 => Err(Response::fault(
            404,
            &format!("there is no disk {id:?}; there are {}", names(&mut vm.disks())),
        )),
        1 => found.pop().ok_or_else(|| Response::fault(500, "the disk is gone")),
        _ => {
            let said = format!("several disks have the ID {id:?}: {}", names(&mut found.into_iter()));
            Err(Response::fault(400, &said))
        }
    }
}

fn describe(vm: &VmHandle, id: &str) -> Result<Drive, Response> {
    let disk = find(vm, id)?;
    Ok(Drive {
        path_on_host: disk.config.path.to_string_lossy().into_owned(),
        is_read_only: disk.config.read_only,
        size_bytes: disk.handle.size(),
        drive_id: disk.name,
    })
}

fn resize(vm: &VmHandle, id: &str, update: &DriveUpdate) -> Result<Response, Response> {
    if update.drive_id != id {
        let said = format!("the body is for drive {:?}, the path for {id:?}", update.drive_id);
        return Err(Response::fault(400, &said));
    }
    let disk = find(vm, id)?;
    match disk.handle.resize(update.size_bytes, update.shrink) {
        Ok(_) => Ok(Response::done()),
        Err(error) => {
            let mut said = format!("cannot resize {}: {error}", disk.name);
            let mut cause = std::error::Error::source(&error);
            while let Some(error) = cause {
                said = format!("{said}: {error}");
                cause = error.source();
            }
            Err(Response::fault(400, &said))
        }
    }
}
