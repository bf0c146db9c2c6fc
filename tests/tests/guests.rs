//! Boots of real Linux guests.

#![allow(missing_docs, reason = "tests are named after what they show")]
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a panic is a failed test")]

#[path = "guests/balloon.rs"]
mod balloon;
#[path = "guests/boots.rs"]
mod boots;
#[path = "guests/console.rs"]
mod console;
#[path = "guests/container_disks.rs"]
mod container_disks;
#[path = "guests/container_networks.rs"]
mod container_networks;
#[path = "guests/containers.rs"]
mod containers;
#[path = "guests/control.rs"]
mod control;
#[path = "guests/copies.rs"]
mod copies;
#[path = "../../cli/tests/soak/counts.rs"]
mod counts;
#[path = "guests/disks.rs"]
mod disks;
#[path = "guests/docker_inside.rs"]
mod docker_inside;
#[path = "guests/ends.rs"]
mod ends;
#[path = "guests/ends_debian.rs"]
mod ends_debian;
#[path = "guests/exec.rs"]
mod exec;
#[path = "guests/flags.rs"]
mod flags;
#[path = "guests/forks.rs"]
mod forks;
#[path = "guests/gdb.rs"]
mod gdb;
#[path = "guests/hostile.rs"]
mod hostile;
#[path = "guests/jail.rs"]
mod jail;
#[path = "guests/jail_outside.rs"]
mod jail_outside;
#[path = "guests/keepers.rs"]
mod keepers;
#[path = "guests/life.rs"]
mod life;
#[path = "guests/lives.rs"]
mod lives;
#[path = "guests/machine.rs"]
mod machine;
#[path = "guests/makers.rs"]
mod makers;
#[path = "guests/nesting.rs"]
mod nesting;
#[path = "guests/net.rs"]
mod net;
#[path = "guests/output.rs"]
mod output;
#[path = "guests/passt.rs"]
mod passt;
#[path = "guests/pause.rs"]
mod pause;
#[path = "guests/peers.rs"]
mod peers;
#[path = "../../cli/tests/registry/place.rs"]
#[allow(dead_code, reason = "another package's tests use more of it")]
mod place;
#[path = "guests/pmem.rs"]
mod pmem;
#[path = "guests/pods.rs"]
mod pods;
#[path = "guests/readme.rs"]
mod readme;
#[path = "guests/registry.rs"]
mod registry;
#[path = "guests/saved.rs"]
mod saved;
#[path = "../../cli/tests/registry/server.rs"]
#[allow(dead_code, reason = "another package's tests use more of it")]
mod server;
#[path = "guests/shares.rs"]
mod shares;
#[path = "guests/snapshots.rs"]
mod snapshots;
#[path = "guests/soak/mod.rs"]
mod soak;
#[path = "guests/stopped.rs"]
mod stopped;
#[path = "guests/table.rs"]
mod table;
#[path = "guests/table_commands.rs"]
mod table_commands;
#[path = "guests/table_docker.rs"]
mod table_docker;
#[path = "guests/table_files.rs"]
mod table_files;
#[path = "guests/table_life.rs"]
mod table_life;
#[path = "guests/table_volumes.rs"]
mod table_volumes;
#[path = "../../cli/tests/registry/tls.rs"]
#[allow(dead_code, reason = "another package's tests use more of it")]
mod tls;
#[path = "guests/vm_exec.rs"]
mod vm_exec;
#[path = "guests/vm_images.rs"]
mod vm_images;
#[path = "guests/volumes.rs"]
mod volumes;
#[path = "guests/vsock.rs"]
mod vsock;
#[path = "guests/warm.rs"]
mod warm;
#[path = "guests/warm_images.rs"]
mod warm_images;
