//! Confinement of mvm's processes.
//!
//! A process that works for somebody who is not trusted, a guest or an image, first opens all that it needs, and then
//! gives up what it could do beyond that: [`enter()`] does so for the process as long as it has one thread, or
//! [`enclose()`] where it goes on to work with some of the host's files, and [`seccomp`] for each thread once it runs.
//! What a host does not offer is left out or refused, as [`Mode`] says, and [`Report`] says which layers hold.

mod enclose;
mod enter;
mod ids;
mod landlock;
mod layer;
mod namespaces;
mod process;
pub mod seccomp;

pub use enclose::{Enclosure, enclose};
pub use enter::{Jail, JailError, enter, probe};
pub use ids::Ids;
pub use landlock::Reach;
pub use layer::{Layer, Mode, Report, State};
pub use rustix::thread::CapabilitySet;
