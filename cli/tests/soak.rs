//! Commands that are killed at random moments, and disks that are full, as far as no VM is needed; `tests/` has the
//! rest. CI repeats each a few times, `make soak` often.

#![allow(missing_docs, reason = "tests are named after what they show")]
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a panic is a failed test")]
#![allow(clippy::indexing_slicing, reason = "a panic is a failed test")]

#[path = "soak/counts.rs"]
mod counts;
#[path = "soak/full.rs"]
mod full;
#[path = "soak/host.rs"]
mod host;
#[path = "soak/kills.rs"]
mod kills;
#[path = "registry/place.rs"]
#[allow(dead_code, reason = "other tests use more of it")]
mod place;
#[path = "registry/server.rs"]
#[allow(dead_code, reason = "other tests use more of it")]
mod server;
#[path = "registry/tls.rs"]
#[allow(dead_code, reason = "other tests use more of it")]
mod tls;
