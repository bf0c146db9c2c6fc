//! Containers, each in a VM of its own: from an image and a user's options to a VM with an agent, and its life.
//!
//! A container's VM has three disks: the agent's root, the image (see the crate `erofs`), and what takes its changes. The
//! agent connects over vsock and is told what to run; standard input and output are connections of their own.

mod assets;
mod connection;
mod image;
mod machine;
mod options;
mod run;
mod seccomp;
mod session;
mod signal;
mod spec;
mod stdio;

pub use assets::{Assets, AssetsError};
pub use image::{Image, ImageConfig};
pub use machine::size;
pub use options::{NetworkOption, OptionsError, RunOptions, Volume};
pub use run::{Ended, RunError, run};
