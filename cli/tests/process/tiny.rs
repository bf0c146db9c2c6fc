//! Guests in assembly; see `guest!`.

#[macro_use]
#[path = "../../../vmm/tests/tiny/guest.rs"]
pub(crate) mod guest;
#[path = "../../../vmm/tests/tiny/served.rs"]
pub(crate) mod served;
#[path = "../../../vmm/tests/tiny/stuck.rs"]
pub(crate) mod stuck;
