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

/// Bytes by the lines of a smaps_rollup file (proc_pid_smaps(5)).
fn rollup_bytes(rollup: &str) -> Option<(u64, u64)> {
    let kib = |name: &str| {
        let line = rollup.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
    };
    Some((kib("Rss")?, kib("Shared_Clean")?.checked_add(kib("Shared_Dirty")?)?))
}

/// Reads the gauges of this process. Its files of /proc stay open, so that reading opens nothing; without them the
/// gauges of memory are missing.
#[derive(Default)]
pub struct ProcessMeter {
    statm: Option<File>,
    /// It counts by page what is shared, and takes longer to read.
    rollup: Option<File>,
}

/// The most bytes of a smaps_rollup file.
const ROLLUP: usize = 4096;

impl ProcessMeter {
    /// A meter of this process.
    pub fn new() -> Self {
        let open = |name| File::open(name).ok();
        Self { statm: open("/proc/self/statm"), rollup: open("/proc/self/smaps_rollup") }
    }

    /// Resident and shared bytes: of them those that other processes have too.
    fn rollup(&self) -> Option<(u64, u64)> {
        let (mut text, mut length) = ([0; ROLLUP], 0);
        let rollup = self.rollup.as_ref()?;
        while let count @ 1.. = rollup.read_at(text.get_mut(length..)?, length as u64).ok()? {
            length += count;
        }
        rollup_bytes(std::str::from_utf8(text.get(..length)?).ok()?)
    }

    /// The gauges now. What /proc does not say is 0.
    pub fn read(&self) -> ProcessGauges {
        // Seven numbers of at most 20 digits.
        let mut line = [0; 160];
        let length = self.statm.as_ref().and_then(|statm| statm.read_at(&mut line, 0).ok()).unwrap_or(0);
        let line = std::str::from_utf8(line.get(..length).unwrap_or_default()).unwrap_or_default();
        let page = rustix::param::page_size() as u64;
        let of_statm = || {
            let (resident, shared) = resident_and_shared(line)?;
            Some((resident.saturating_mul(page), shared.saturating_mul(page)))
        };
        let (resident_bytes, shared_bytes) = self.rollup().or_else(of_statm).unwrap_or_default();
        ProcessGauges {
            cpu_nanoseconds: nanoseconds(ClockId::ProcessCPUTime),
            time_nanoseconds: nanoseconds(ClockId::Boottime),
            resident_bytes,
            shared_bytes,
        }
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

    #[test]
    fn memory_is_read_from_its_lines() {
        let rollup = "55d0-7ffd ---p 00000000 00:00 0    [rollup]\nRss:        884 kB\nPss:   1 kB\nPss_Anon: 1 kB\n\
                      Shared_Clean:  100 kB\nShared_Dirty:    4 kB\n";
        assert_eq!(rollup_bytes(rollup), Some((884 << 10, 104 << 10)));
        assert_eq!(rollup_bytes("Rss: many kB"), None);
        assert_eq!(rollup_bytes(""), None);
        let own = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
        assert!(rollup_bytes(&own).is_some_and(|(resident, shared)| resident > shared), "{own}");
    }
}
