//! Confinement of the process that runs a VM.
//!
//! Once all that the VM needs is open, the process gives up the rest with [`Resources::confine`], while it has one
//! thread. Each thread that it starts then has a filter of system calls of its own from the beginning; the main thread
//! gets its own when the VM is built.

mod noted;
mod outside;
mod table;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use jail::seccomp::{Filter, SeccompError};
use jail::{Ids, Jail, Layer, Mode, Report, State};

pub use self::noted::JAIL;
pub(crate) use self::noted::Noted;
pub use self::outside::Outside;
use self::table::{COMMON, DEBUG, KINDS, VCPU_DEBUGGED};
use crate::launch::Resources;
use crate::{VmConfig, VmError};

/// Private memory of the process beside the guest's: what devices keep for connections and requests, and stacks.
const OVERHEAD: u64 = 512 << 20;
/// How many memory pools malloc has for all threads. With more, it would read the number of processors from a file, and
/// each takes four system calls and 132 KiB.
const ARENAS: i32 = 1;
/// The exit code where a thread cannot be confined, as for a panic.
const ABORTED: i32 = 134;

static IS_CONFINED: AtomicBool = AtomicBool::new(false);
/// The filters by the kinds of threads, once this process has some.
static FILTERS: OnceLock<Filters> = OnceLock::new();

struct Filters {
    process: u32,
    has_debugger: bool,
    made: Mutex<BTreeMap<&'static str, Arc<Filter>>>,
}

impl Filters {
    /// The filter of a thread of this name.
    fn of(&self, name: &str) -> Result<Arc<Filter>, SeccompError> {
        let kind = name.trim_end_matches(|letter: char| letter.is_ascii_digit());
        // One without a table may do what all may.
        let (kind, rules) = KINDS.iter().find(|(known, _)| *known == kind).copied().unwrap_or(("other", &[]));
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(filter) = made.get(kind) {
            return Ok(filter.clone());
        }
        let debugged = if self.has_debugger && kind == "vcpu" { VCPU_DEBUGGED } else { &[] };
        let checked = if cfg!(debug_assertions) { DEBUG } else { &[] };
        let rules = COMMON.iter().chain(rules).chain(debugged).chain(checked);
        let filter = Arc::new(Filter::new_in(kind, self.process, rules)?);
        made.insert(kind, filter.clone());
        Ok(filter)
    }
}

/// Ends the process, as a thread cannot be confined.
fn abort(name: &str, error: &SeccompError) -> ! {
    devices::log::say(format_args!("{name}: {}", devices::log::chain(error)));
    // SAFETY: it ends the process.
    unsafe { libc::_exit(ABORTED) };
}

/// Whether this process has given up rights, such as to signal the processes that it started.
pub(crate) fn is_confined() -> bool {
    IS_CONFINED.load(Ordering::Relaxed)
}

/// Confines the main thread, where the others are: the VM is built.
///
/// # Errors
///
/// [`VmError::Seccomp`].
pub(crate) fn seal() -> Result<(), VmError> {
    FILTERS.get().map_or(Ok(()), |filters| Ok(filters.of("main")?.install()?))
}

/// The most bytes of private memory that the process of `config` needs.
fn most_data(config: &VmConfig) -> u64 {
    let files: u64 =
        config.pmem.iter().filter_map(|pmem| pmem.path.metadata().ok()).map(|file| file.len()).sum();
    config.memory.bytes().saturating_add(files).saturating_add(OVERHEAD)
}

impl Resources<'_> {
    /// Gives up what running the VM does not need, in the control group that it is in already, and as the user that
    /// [`Outside::enter`] says. Calls that a filter forbids are reported to `reports`, as
    /// [`jail::seccomp::Violation`] reads them. This process has one thread.
    ///
    /// # Errors
    ///
    /// [`VmError::Jail`]: the process cannot be confined as `mode` asks; it is to end then.
    pub fn confine(
        &mut self,
        mode: Mode,
        (ids, cgroup): (Ids, State),
        reports: OwnedFd,
    ) -> Result<Report, VmError> {
        if mode == Mode::Off {
            return Ok(Report { mode, layers: Vec::new() });
        }
        // SAFETY: the call sets a number of malloc's.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
        // Both ask the kernel about the process once, by a call that no thread makes later.
        let _ = (rustix::param::page_size(), rustix::time::clock_gettime(rustix::time::ClockId::Monotonic));
        let report =
            jail::enter(Jail { mode, files: None, data: Some(most_data(self.config)), ids, cgroup })?;
        IS_CONFINED.store(true, Ordering::Relaxed);
        devices::socket::leave_files();
        if !report.missing().any(|(layer, _)| layer == Layer::Seccomp) {
            jail::seccomp::report_to(reports)?;
            let has_debugger = self.config.gdb.is_some();
            let filters = FILTERS.get_or_init(|| Filters {
                process: std::process::id(),
                has_debugger,
                made: Mutex::default(),
            });
            devices::before_threads(Box::new(|name| {
                let filter = filters.of(name).unwrap_or_else(|error| abort(name, &error));
                Arc::new(move || filter.install().unwrap_or_else(|error| abort(filter.kind(), &error)))
            }));
        }
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_thread_has_a_filter() {
        for (kind, rules) in KINDS {
            Filter::new(kind, COMMON.iter().chain(*rules).chain(VCPU_DEBUGGED)).unwrap();
            let mut names: Vec<_> =
                rules.iter().map(|rule| (rule.name, format!("{:?}", rule.arguments))).collect();
            names.sort();
            let all = names.len();
            names.dedup();
            assert_eq!(names.len(), all, "{kind} has a rule twice");
            assert!(rules.iter().all(|rule| COMMON.iter().all(|common| common.call != rule.call)), "{kind}");
        }
    }
}
