//! Registries as users meet them: docker's own registry, with skopeo beside mvm, and the process that pulls.
//!
//! Each test has a registry, a store and a home directory of its own.

#![allow(missing_docs, reason = "tests are named after what they show")]
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a panic is a failed test")]
#![allow(clippy::indexing_slicing, reason = "a panic is a failed test")]

#[path = "registry/empty_root.rs"]
mod empty_root;
#[path = "registry/helper.rs"]
mod helper;
#[path = "registry/interrupted.rs"]
mod interrupted;
#[path = "registry/login.rs"]
mod login;
#[path = "registry/place.rs"]
mod place;
#[path = "registry/proxy.rs"]
mod proxy;
#[cfg(feature = "attack")]
#[path = "registry/sealed.rs"]
mod sealed;
#[path = "registry/server.rs"]
mod server;
#[path = "registry/tls.rs"]
mod tls;
#[path = "registry/worker.rs"]
mod worker;
