//! The console.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{ConfigError, serde_as_text};

/// What the console is and where it goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ConsoleConfig {
    /// The serial port to standard output, and from standard input.
    #[default]
    Stdio,
    /// A virtio console in its place, which knows the size of the user's window; the serial port's output, such as
    /// the kernel's before it has the driver, goes the same way.
    Virtio,
    /// The serial port to nowhere.
    Off,
    /// The serial port to the end of a file.
    File(PathBuf),
}

impl FromStr for ConsoleConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text {
            "stdio" => Ok(Self::Stdio),
            "virtio" => Ok(Self::Virtio),
            "off" => Ok(Self::Off),
            "" => Err(ConfigError::Console),
            path => Ok(Self::File(path.into())),
        }
    }
}

impl fmt::Display for ConsoleConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdio => f.write_str("stdio"),
            Self::Virtio => f.write_str("virtio"),
            Self::Off => f.write_str("off"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

serde_as_text!(ConsoleConfig);
