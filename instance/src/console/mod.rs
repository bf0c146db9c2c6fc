//! A user's terminal on a VM's console.

mod attach;
mod escape;
mod terminal;

pub use attach::{AttachError, Detached, attach};
pub use escape::{Command, Escape, HELP};
pub use terminal::{RawTerminal, in_foreground, restore as restore_terminal, take_terminal};
