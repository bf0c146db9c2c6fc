//! A line of the report on a host.

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// mvm works, but not as well as it could.
    Poor,
    /// mvm cannot run a VM.
    Bad,
}

/// A command that mends something without a decision of the user's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// To install a package.
    Package {
        /// The command that the package's name follows; it needs root.
        installer: &'static str,
        /// The package.
        name: &'static str,
    },
    /// A simple command for root.
    Root(String),
    /// A command for the user.
    User(String),
}

/// One line of the doctor's report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was checked.
    pub name: &'static str,
    /// How it came out.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// How to fix it, if it is not good.
    pub fix: Option<String>,
    /// The commands that do so, in order, where there are any that always do.
    pub remedies: Vec<Remedy>,
}

impl Check {
    pub(crate) fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Good, found: found.into(), fix: None, remedies: Vec::new() }
    }

    pub(crate) fn poor(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        let fix = Some(fix.into());
        Self { name, verdict: Verdict::Poor, found: found.into(), fix, remedies: Vec::new() }
    }

    pub(crate) fn bad(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { verdict: Verdict::Bad, ..Self::poor(name, found, fix) }
    }

    /// The same, which commands mend.
    pub(crate) fn mended_by(self, remedies: impl IntoIterator<Item = Remedy>) -> Self {
        Self { remedies: remedies.into_iter().collect(), ..self }
    }
}
