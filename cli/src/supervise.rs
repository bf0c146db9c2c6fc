//! The thread that sees to it that this process ends.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use instance::{Instance, Signals};
use vmm::{ExitReason, Limits, Supervisor};

use crate::complain;

/// The VM's directory, once it has one.
pub type Place = Arc<Mutex<Option<Instance>>>;

/// The directory, for a moment.
pub fn lock(place: &Place) -> MutexGuard<'_, Option<Instance>> {
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the thread that takes `signals` and sees to it that this process ends. It is the first: signals are blocked
/// for those that it and the main thread start. Where it has to end the process itself, that ends with `code`.
///
/// # Errors
///
/// Those of the system calls.
pub fn start(
    signals: Option<Signals>,
    limits: Limits,
    code: fn(&ExitReason) -> u8,
) -> io::Result<(Place, Supervisor)> {
    let place = Place::default();
    let to_clean = place.clone();
    let last_resort = move |reason: &ExitReason| {
        complain(&reason.to_string());
        instance::console::restore_terminal();
        devices::socket::remove_files();
        // Where the main thread is removing it, that goes on until this process ends.
        if let Ok(mut place) = to_clean.try_lock() {
            drop(place.take());
        }
        devices::log::finish_quickly();
        instance::exit_now(code(reason))
    };
    let supervisor = Supervisor::start(signals, limits, Box::new(last_resort))?;
    Ok((place, supervisor))
}
