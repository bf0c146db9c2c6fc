//! Failures as the host reads them.

use std::fmt::Display;
use std::io;

use agent_protocol::{Failure, FailureKind};

/// The result of a step.
pub type Result<T> = std::result::Result<T, Failure>;

/// Adds to an error what was being done.
pub trait During<T> {
    /// `what` completes "cannot …".
    fn during(self, what: impl Display) -> Result<T>;
}

impl<T, E: Into<io::Error>> During<T> for std::result::Result<T, E> {
    fn during(self, what: impl Display) -> Result<T> {
        self.map_err(|error| failure(format!("cannot {what}: {}", error.into())))
    }
}

/// A failure of the usual kind.
pub fn failure(message: String) -> Failure {
    Failure { kind: FailureKind::Other, message }
}
