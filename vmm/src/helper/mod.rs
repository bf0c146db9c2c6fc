//! Helpers, which are other programs that mvm starts (virtiofsd, passt): how one is found, started, logged and ended.

mod command;
mod filter;
mod package;
mod process;
mod program;

pub(crate) use self::command::confine;
pub(crate) use self::filter::check_helpers;
pub use self::package::{Build, Package};
pub use self::process::Helper;
pub(crate) use self::process::becomes_readable;
pub use self::program::Program;
