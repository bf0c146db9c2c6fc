//! The device with a driver on one side and Unix sockets on the other.

mod connections;
mod dialed;
mod flow;
pub(super) mod guest;
mod hostile;
mod listener;
mod model;
mod suspend;

use super::header::{HOST_CID, Header, STREAM, op, shutdown};
use guest::{CID, Guest};
