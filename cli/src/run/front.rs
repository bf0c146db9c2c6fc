//! `--attach`: which streams of a container the user's command is connected with.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A stream, by docker's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamName {
    Stdin,
    Stdout,
    Stderr,
}

impl FromStr for StreamName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "stdin" => Ok(Self::Stdin),
            "stdout" => Ok(Self::Stdout),
            "stderr" => Ok(Self::Stderr),
            _ => Err(format!("invalid stream {text:?}: use stdin, stdout or stderr")),
        }
    }
}

/// The streams that a container's command is connected with; a container in the background has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attached {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

impl Attached {
    /// As docker has it: the outputs without `--attach`, and the input also where the container is interactive.
    pub fn new(named: &[StreamName], is_interactive: bool) -> Self {
        let has = |name| named.contains(&name);
        Self {
            stdin: is_interactive || has(StreamName::Stdin),
            stdout: named.is_empty() || has(StreamName::Stdout),
            stderr: named.is_empty() || has(StreamName::Stderr),
        }
    }

    /// Whether an output is among them. Without one, the command prints the ID and ends with its input.
    pub fn has_output(self) -> bool {
        self.stdout || self.stderr
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(&[], false, (false, true, true))]
    #[case(&[], true, (true, true, true))]
    #[case(&["stdout"], false, (false, true, false))]
    #[case(&["STDERR"], true, (true, false, true))]
    #[case(&["stdin"], false, (true, false, false))]
    #[case(&["Stdin", "stdout", "stderr"], true, (true, true, true))]
    fn streams_are_dockers(
        #[case] named: &[&str],
        #[case] is_interactive: bool,
        #[case] (stdin, stdout, stderr): (bool, bool, bool),
    ) {
        let named: Vec<StreamName> = named.iter().map(|name| name.parse().unwrap()).collect();
        assert_eq!(Attached::new(&named, is_interactive), Attached { stdin, stdout, stderr });
    }

    #[test]
    fn there_are_three() {
        for bad in ["", "all", "std", "0", "stdin,stdout"] {
            assert!(bad.parse::<StreamName>().unwrap_err().contains("use stdin, stdout or stderr"), "{bad}");
        }
    }
}
