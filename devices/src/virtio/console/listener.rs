//! Whether anybody listens to what is typed.
//!
//! Linux makes buffers available and sets DRIVER_OK before it knows its console, and throws away what comes until it
//! does: the input that a script has ready before the guest has even booted. Nothing says when that time is over, so
//! the driver is asked before the first byte: it gets a buffer with nothing in it. A console that a program has open
//! makes the buffer available again; one that was thrown away does not come back, and the driver is asked again.

use std::num::Wrapping;
use std::time::Duration;

use super::super::queue::{ActiveQueue, Chain};
use crate::Timer;

/// The time before the first question, by which a driver has made all its buffers available, and before the second;
/// then it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(10);
/// After so many questions, some seconds later, even a driver that never answers has found its console.
const QUESTIONS: u32 = 8;

/// What is known of the driver.
#[derive(Default)]
pub(super) enum Listener {
    /// Nobody has asked.
    #[default]
    Unknown,
    /// It was asked so often.
    Asked {
        questions: u32,
        /// How many buffers it had made available by the last question.
        available: Option<Wrapping<u16>>,
    },
    /// It listens.
    There,
}

impl Listener {
    /// Whether what is put into `queue` will be heard. If that is not known, it is asked once `timer` goes off, and the
    /// driver notifies the device of its answer.
    pub(super) fn is_there(&mut self, queue: &ActiveQueue, timer: &Timer) -> bool {
        match self {
            Self::Unknown => self.wait(0, None, timer),
            Self::Asked { available: Some(before), .. } if queue.available() != *before => {
                *self = Self::There
            }
            Self::Asked { .. } | Self::There => {}
        }
        matches!(self, Self::There)
    }

    fn wait(&mut self, questions: u32, available: Option<Wrapping<u16>>, timer: &Timer) {
        // A timer that can't be set would leave the user without a keyboard.
        let is_set = timer.set_once(FIRST_WAIT * (1 << questions.saturating_sub(1)));
        *self = is_set.map_or(Self::There, |()| Self::Asked { questions, available });
    }

    /// Asks, as the timer has gone off.
    pub(super) fn ask(&mut self, queue: &mut ActiveQueue, timer: &Timer) {
        let Self::Asked { questions, .. } = *self else { return };
        if questions == QUESTIONS {
            *self = Self::There;
            return;
        }
        let mut chain = Chain::default();
        queue.start_turn();
        if queue.pop(&mut chain) {
            let available = queue.await_more();
            queue.add_used(chain.head, 0);
            queue.end_turn();
            self.wait(questions + 1, Some(available), timer);
        } else {
            // It notifies the device of its first buffer.
            *self = Self::Unknown;
        }
    }
}
