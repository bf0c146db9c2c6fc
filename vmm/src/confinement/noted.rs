//! How a VM is confined, as other commands read it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jail::{Layer, Mode, Report, State};

use crate::helper::check_helpers;

/// The file in a VM's directory that says how it is confined.
pub const JAIL: &str = "jail.json";

/// The report of a VM's process, which the keeper has, and has in a file.
pub struct Noted {
    /// None where the VM has no directory.
    file: Option<PathBuf>,
    report: Mutex<Report>,
}

impl Noted {
    /// One for the VM of this directory, which is not confined yet.
    pub fn new(directory: Option<&Path>) -> Self {
        Self { file: directory.map(|directory| directory.join(JAIL)), report: Mutex::default() }
    }

    /// Notes what the VM's process has said of itself before the guest ran. What it says later does not count.
    pub fn confined(&self, report: Report) {
        let mut known = self.lock();
        if known.layers.is_empty() {
            self.write(&report);
            *known = report;
        }
    }

    /// Notes whether the processes that serve devices are confined, which they see to themselves. They lead the groups
    /// `leaders`.
    ///
    /// # Errors
    ///
    /// A line for the user: one is not, and all confinement is asked for.
    pub fn helpers(&self, leaders: &[u32]) -> Result<(), String> {
        let mut report = self.lock();
        let is_known = report.layers.iter().any(|(layer, _)| *layer == Layer::Helpers);
        if report.mode == Mode::Off || is_known || leaders.is_empty() {
            return Ok(());
        }
        let state = match check_helpers(leaders) {
            Ok(()) => State::On(String::new()),
            Err(lack) => {
                tracing::info!("the VM is confined without {}: {lack}", Layer::Helpers);
                State::Missing(lack)
            }
        };
        report.layers.push((Layer::Helpers, state));
        self.write(&report);
        report.check().map_err(|error| devices::log::chain(&error))
    }

    fn lock(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, report: &Report) {
        let Some(file) = &self.file else { return };
        let written = serde_json::to_vec(report).map_err(io::Error::from);
        if let Err(error) = written.and_then(|text| std::fs::write(file, text)) {
            tracing::warn!(%error, "cannot note how the VM is confined");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;

    /// A process without a filter, and what a VM that it serves is said to be, after it was looked at.
    fn served(mode: Mode) -> (Result<(), String>, Report) {
        let directory = tempfile::tempdir().unwrap();
        let noted = Noted::new(Some(directory.path()));
        noted.confined(Report { mode, layers: vec![(Layer::Dumps, State::On(String::new()))] });
        noted.confined(Report::default());
        let mut helper = Command::new("sleep").arg("1000").process_group(0).spawn().unwrap();
        let result = noted.helpers(&[helper.id()]);
        helper.kill().unwrap();
        helper.wait().unwrap();
        let text = std::fs::read(directory.path().join(JAIL)).unwrap();
        (result, serde_json::from_slice(&text).unwrap())
    }

    #[test]
    fn a_helper_without_a_filter_is_noted_or_refused() {
        let (result, report) = served(Mode::BestEffort);
        let missing: Vec<_> = report.missing().collect();
        assert!(
            matches!(missing[..], [(Layer::Helpers, why)] if why.contains("has no filter")),
            "{missing:?}"
        );
        assert_eq!((result, report.layers.len()), (Ok(()), 2));
        let (result, report) = served(Mode::Strict);
        let line = result.unwrap_err();
        assert!(line.starts_with("--jail strict: this host lacks helpers (sleep (process "), "{line}");
        assert_eq!(report.layers.len(), 2);
    }

    #[test]
    fn without_a_jail_nothing_is_looked_at() {
        let (result, report) = served(Mode::Off);
        assert_eq!((result, report.layers.len()), (Ok(()), 1));
    }
}
