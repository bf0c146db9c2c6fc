//! What the process keeps for its job when it gives up the rest.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use image::{Client, ClientFiles};
use jail::seccomp::Filter;
use jail::{CapabilitySet, Enclosure, JailError, Layer, Reach};
use rustix::process::{Resource, getrlimit};

use super::{Job, Request, child, table};
use crate::chain;

/// The most private memory, in bytes: names of layers, and what decompresses and merges them.
const DATA: u64 = 8 << 30;
/// How many memory pools malloc makes for threads. It would otherwise ask how many processors there are.
const ARENAS: i32 = 4;

/// Gives up what the job does not need. This process has one thread, and has read nothing but the request.
///
/// # Errors
///
/// A line for the user; the job is not to be done then.
pub fn seal(request: &Request) -> Result<(), String> {
    let job = &request.job;
    let reports = take_standard_error().map_err(|error| format!("cannot make a pipe: {error}"))?;
    if matches!(job, Job::Unpack { .. }) {
        // Modes are those of the stream. No other thread makes a file.
        rustix::process::umask(rustix::fs::Mode::empty());
        crate::files::raise_open_files();
    }
    // SAFETY: the call sets a number of malloc's.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
    let enclosure = Enclosure {
        mode: request.jail,
        files: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
        data: DATA,
        reach: reach(request),
        is_in_root: matches!(job, Job::Unpack { .. }),
        capabilities: capabilities(job),
    };
    let report = jail::enclose(&enclosure).map_err(|error| match error {
        JailError::Missing(what) => format!(
            "jail = \"strict\" in the configuration file: this host lacks {what}; \"best-effort\" does without"
        ),
        error => chain(&error),
    })?;
    let has_filter = report.layers.iter().any(|(layer, _)| *layer == Layer::Seccomp)
        && !report.missing().any(|(layer, _)| layer == Layer::Seccomp);
    if has_filter { filter(job, reports).map_err(|error| chain(&error)) } else { Ok(()) }
}

/// Takes standard error for reports. Other writes there fail: the pipe has no reader.
fn take_standard_error() -> io::Result<OwnedFd> {
    let reports = io::stderr().as_fd().try_clone_to_owned()?;
    rustix::io::ioctl_fionbio(&reports, true)?;
    let (_, nowhere) = io::pipe()?;
    rustix::stdio::dup2_stderr(&nowhere)?;
    Ok(reports)
}

fn reach(request: &Request) -> Reach {
    let here = || vec![PathBuf::from(".")];
    let store = || vec![request.store.clone()];
    let of_client = |written| {
        let ClientFiles { files, directories, listed } = Client::new(child::options(request)).files();
        Reach { written, read: directories, files, listed, connects: true }
    };
    match &request.job {
        Job::Pull(_) | Job::Push(_) => of_client(store()),
        Job::Login { .. } => of_client(Vec::new()),
        Job::Load | Job::Import { .. } | Job::Commit { .. } => Reach { written: store(), ..Reach::default() },
        Job::LoadDirectory => Reach { written: store(), read: here(), ..Reach::default() },
        Job::Unpack { .. } => Reach { written: here(), ..Reach::default() },
    }
}

/// What root needs in files of others.
fn capabilities(job: &Job) -> CapabilitySet {
    match job {
        // The user's layout may be nobody else's to read.
        Job::LoadDirectory => CapabilitySet::DAC_READ_SEARCH,
        Job::Unpack { .. } => {
            CapabilitySet::CHOWN
                | CapabilitySet::DAC_OVERRIDE
                | CapabilitySet::FOWNER
                | CapabilitySet::FSETID
                | CapabilitySet::MKNOD
                | CapabilitySet::SETFCAP
        }
        _ => CapabilitySet::empty(),
    }
}

fn filter(job: &Job, reports: OwnedFd) -> Result<(), jail::seccomp::SeccompError> {
    let rules = table::of(job);
    let failing = table::failing(job);
    let allowed = rules.iter().copied().flatten().chain(failing.iter().flat_map(|(rules, _)| rules.iter()));
    let filter = Filter::new(table::KIND, allowed)?;
    jail::seccomp::report_to(reports)?;
    // The one that traps comes last: the others are installed by calls that are not in it.
    for (rules, error) in failing {
        Filter::failing(table::KIND, rules, error)?.install()?;
    }
    filter.install_for_all()
}
