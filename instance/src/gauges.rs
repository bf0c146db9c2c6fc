//! What the host says of this process.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// What the process has used and uses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessGauges {
    /// Nanoseconds of all its threads on processors, in the guest and outside.
    pub cpu_nanoseconds: u64,
    /// Nanoseconds since the host's boot at the time of these gauges.
    pub time_nanoseconds: u64,
    /// Bytes of its memory that are in the host's, the guest's among them.
    pub resident_bytes: u64,
    /// Those of them that are of files or shared memory.
    pub shared_bytes: u64,
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// Resident and shared pages, the second and third field of a statm file (proc_pid_statm(5)).
fn resident_and_shared(statm: &str) -> Option<(u64, u64)> {
    let mut fields = statm.split_ascii_whitespace().skip(1).map(|field| field.parse::<u64>().ok());
    Some((fields.next()??, fields.next()??))
}

/// Reads the gauges of this process. Its file of /proc stays open, so that reading opens nothing.
pub struct ProcessMeter {
    /// What it does not say is 0.
    statm: Option<File>,
}

impl ProcessMeter {
    /// A meter of this process.
    pub fn new() -> Self {
        Self { statm: File::open("/proc/self/statm").ok() }
    }

    /// The gauges now. What /proc does not say is 0.
    pub fn read(&self) -> ProcessGauges {
        // Seven numbers of at most 20 digits.
        let mut line = [0; 160];
        let length = self.statm.as_ref().and_then(|statm| statm.read_at(&mut line, 0).ok()).unwrap_or(0);
        let line = std::str::from_utf8(line.get(..length).unwrap_or_default()).unwrap_or_default();
        let (resident, shared) = resident_and_shared(line).unwrap_or_default();
        let page = rustix::param::page_size() as u64;
        ProcessGauges {
            cpu_nanoseconds: nanoseconds(ClockId::ProcessCPUTime),
            time_nanoseconds: nanoseconds(ClockId::Boottime),
            resident_bytes: resident.saturating_mul(page),
            shared_bytes: shared.saturating_mul(page),
        }
    }
}

impl Default for ProcessMeter {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gauges_are_those_of_this_process() {
        let meter = ProcessMeter::new();
        let before = meter.read();
        let memory = std::hint::black_box(vec![1_u8; 64 << 20]);
        let after = meter.read();
        assert!(after.resident_bytes >= before.resident_bytes + (32 << 20), "{before:?} {after:?}");
        assert!(
            after.cpu_nanoseconds > before.cpu_nanoseconds
                && after.time_nanoseconds > before.time_nanoseconds
        );
        assert!(after.shared_bytes > 0 && after.shared_bytes < after.resident_bytes);
        drop(memory);
    }

    #[test]
    fn what_is_no_statm_is_nothing() {
        assert_eq!(resident_and_shared("9 5 3 1 0 2 0\n"), Some((5, 3)));
        assert_eq!(resident_and_shared("9 five 3"), None);
        assert_eq!(resident_and_shared(""), None);
    }
}
