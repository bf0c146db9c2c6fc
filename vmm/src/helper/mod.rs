//! Other programs that do a part of mvm's work, virtiofsd and passt: how one is found, started, heard, and ended.

mod command;
mod process;
mod program;

pub(crate) use self::command::confine;
pub use self::process::Helper;
pub(crate) use self::process::becomes_readable;
pub use self::program::Program;
