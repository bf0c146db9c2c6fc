//! Whether a program in the guest reads what is typed.
//!
//! Linux makes buffers available and sets DRIVER_OK before it has found its console, and discards what arrives until
//! then, such as the input that a script wrote before the guest has booted. No feature says when that time is over. So
//! the device asks before it sends the first byte, and before it signals the window's size for the last time: it
//! returns a buffer with nothing in it. A console that a program has open makes the buffer available again. A buffer
//! that was discarded does not come back, and the device asks again.

use std::num::Wrapping;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Timer;
use crate::virtio::queue::{ActiveQueue, Chain};

/// The time before the first question, by which a driver has made all its buffers available, and before the second.
const FIRST_WAIT: Duration = Duration::from_millis(10);
/// How many times as long as the last wait is the next.
const PATIENCE: u32 = 4;
/// After so many questions, some seconds later, even a driver that never answers has found its console.
const QUESTIONS: u16 = 5;
/// How long a driver that has begun to answer has for the other questions.
const ANSWER_TIME: Duration = Duration::from_millis(100);

/// What is known of the driver.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Listener {
    /// Nothing.
    #[default]
    Unknown,
    /// It will be asked for the first time.
    ToBeAsked,
    /// It was asked so often.
    Asked {
        /// The count of questions.
        questions: u16,
        /// The count of buffers that it had made available before.
        before: Wrapping<u16>,
        /// It has begun to answer.
        answers: bool,
    },
    /// It listens.
    There,
}

/// The time to the next question, or to the end of all of them.
fn time_after(questions: u16) -> Duration {
    FIRST_WAIT * PATIENCE.pow(u32::from(questions.saturating_sub(1)))
}

impl Listener {
    /// Whether it is known to listen.
    pub(super) fn is_known(&self) -> bool {
        matches!(self, Self::There)
    }

    /// Whether what is put into `queue` will be heard. If that is not known, it is asked once `timer` goes off, and the
    /// driver notifies the device of each answer.
    pub(super) fn is_there(&mut self, queue: &mut ActiveQueue, timer: &Timer) -> bool {
        match self {
            Self::Unknown => {
                *self = Self::ToBeAsked;
                self.wait(FIRST_WAIT, timer);
            }
            Self::Asked { questions, before, answers } => match queue.await_more() - *before {
                Wrapping(0) => {}
                Wrapping(count) if count >= *questions => *self = Self::There,
                _ => {
                    // After an empty buffer, Linux stops reading until it is notified of more, and what is typed
                    // would come one keystroke late for each. Some may have been thrown away.
                    *answers = true;
                    self.wait(ANSWER_TIME, timer);
                    queue.signal_again();
                }
            },
            Self::ToBeAsked | Self::There => {}
        }
        self.is_known()
    }

    /// Whether a device can be in this state.
    pub(super) fn is_valid(&self) -> bool {
        match self {
            Self::Asked { questions, .. } => (1..=QUESTIONS).contains(questions),
            Self::Unknown | Self::ToBeAsked | Self::There => true,
        }
    }

    /// Sets `timer` again, after the device was suspended.
    pub(super) fn resume(&mut self, timer: &Timer) {
        match *self {
            Self::ToBeAsked => self.wait(FIRST_WAIT, timer),
            Self::Asked { answers: true, .. } => self.wait(ANSWER_TIME, timer),
            Self::Asked { questions, .. } => self.wait(time_after(questions), timer),
            Self::Unknown | Self::There => {}
        }
    }

    fn wait(&mut self, time: Duration, timer: &Timer) {
        if timer.set_once(time).is_err() {
            // A timer that can't be set would leave the user without a keyboard.
            *self = Self::There;
        }
    }

    /// Asks, or has waited for long enough: the timer has gone off.
    pub(super) fn ask(&mut self, queue: &mut ActiveQueue, timer: &Timer) {
        let (questions, before) = match self {
            Self::ToBeAsked => (0, queue.available()),
            Self::Asked { questions, before, answers: false } if *questions < QUESTIONS => {
                (*questions, *before)
            }
            Self::Asked { .. } => {
                *self = Self::There;
                return;
            }
            Self::Unknown | Self::There => return,
        };
        let mut chain = Chain::default();
        queue.start_turn();
        if queue.pop(&mut chain) {
            queue.await_more();
            queue.add_used(chain.head, 0);
            queue.end_turn();
            *self = Self::Asked { questions: questions + 1, before, answers: false };
            self.wait(time_after(questions + 1), timer);
        } else {
            // It notifies the device of its next buffer.
            *self = Self::Unknown;
        }
    }
}
