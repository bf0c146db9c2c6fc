//! The console.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{ConfigError, looks_like_a_path, serde_as_text};

/// What the console is and where it goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ConsoleConfig {
    /// The serial port, on standard output and input.
    #[default]
    Stdio,
    /// A virtio console, which follows the size of the user's terminal. What the kernel writes to the serial port
    /// before it has the driver is shown too.
    Virtio,
    /// The serial port, not shown.
    Off,
    /// The serial port, appended to a file.
    File(PathBuf),
}

impl FromStr for ConsoleConfig {
    type Err = ConfigError;

    /// Reads `stdio`, `virtio`, `off`, or a path, which has a slash or a dot: a word such as `tty` is a mistake.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text {
            "stdio" => Ok(Self::Stdio),
            "virtio" => Ok(Self::Virtio),
            "off" => Ok(Self::Off),
            path if looks_like_a_path(path) => Ok(Self::File(path.into())),
            word => Err(ConfigError::Console(word.to_owned())),
        }
    }
}

impl fmt::Display for ConsoleConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdio => f.write_str("stdio"),
            Self::Virtio => f.write_str("virtio"),
            Self::Off => f.write_str("off"),
            Self::File(path) if looks_like_a_path(&path.to_string_lossy()) => write!(f, "{}", path.display()),
            Self::File(path) => write!(f, "./{}", path.display()),
        }
    }
}

serde_as_text!(ConsoleConfig);

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("stdio", ConsoleConfig::Stdio)]
    #[case("virtio", ConsoleConfig::Virtio)]
    #[case("off", ConsoleConfig::Off)]
    #[case("console.log", ConsoleConfig::File("console.log".into()))]
    #[case("./tty", ConsoleConfig::File("./tty".into()))]
    fn consoles_are_read(#[case] text: &str, #[case] expected: ConsoleConfig) {
        assert_eq!(text.parse(), Ok(expected));
    }

    #[rstest]
    #[case("")]
    #[case("tty")]
    #[case("none")]
    #[case("ttyS0")]
    fn a_word_is_not_taken_for_a_path(#[case] text: &str) {
        assert_eq!(text.parse::<ConsoleConfig>(), Err(ConfigError::Console(text.to_owned())));
    }

    #[test]
    fn a_file_reads_back_as_a_file() {
        let written = ConsoleConfig::File("tty".into()).to_string();
        assert_eq!(written.parse(), Ok(ConsoleConfig::File("./tty".into())));
    }
}
