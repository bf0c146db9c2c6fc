//! What start-up spends its time on.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A point of a VM's start, in the order in which they are reached; the last two come in either order, as a kernel may
/// be silent until its init speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// /dev/kvm is open, checked, and has made a VM.
    Kvm,
    /// Guest RAM is there.
    Memory,
    /// Kernel and initrd are in guest RAM.
    Kernel,
    /// Devices are on their buses.
    Devices,
    /// vCPUs are there with their registers set.
    Vcpus,
    /// The first vCPU enters the guest.
    FirstInstruction,
    /// The guest wrote its first byte to the console.
    FirstConsoleByte,
    /// The guest's init wrote to the boot-marker port.
    Init,
}

impl Phase {
    const ALL: [(Self, &'static str); 8] = [
        (Self::Kvm, "open KVM"),
        (Self::Memory, "memory"),
        (Self::Kernel, "kernel"),
        (Self::Devices, "devices"),
        (Self::Vcpus, "vCPUs"),
        (Self::FirstInstruction, "first guest instruction"),
        (Self::FirstConsoleByte, "first console byte"),
        (Self::Init, "init"),
    ];
}

/// When each phase was first reached, since the start of the process. Any thread may mark.
#[derive(Debug)]
pub struct Timeline {
    start: Instant,
    /// Nanoseconds since the start, by phase; 0 where it was not reached.
    marks: [AtomicU64; Phase::ALL.len()],
}

impl Timeline {
    /// A timeline that starts at `start`.
    pub fn starting_at(start: Instant) -> Self {
        Self { start, marks: Default::default() }
    }

    /// Notes that `phase` is reached now; the first time counts.
    pub fn mark(&self, phase: Phase) {
        let now = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1);
        if let Some(mark) = self.marks.get(phase as usize) {
            // Nothing is ordered by a mark: it is read for the table when all is over.
            let _ = mark.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// How long after the start `phase` was reached.
    pub fn reached(&self, phase: Phase) -> Option<Duration> {
        let nanoseconds = self.marks.get(phase as usize)?.load(Ordering::Relaxed);
        (nanoseconds > 0).then(|| Duration::from_nanos(nanoseconds))
    }

    /// Nanoseconds from the start to each phase, in the order of [`Phase`]; 0 where it was not reached.
    pub fn nanoseconds(&self) -> Vec<u64> {
        self.marks.iter().map(|mark| mark.load(Ordering::Relaxed)).collect()
    }
}

/// The name and the time of each phase, of which `nanoseconds` says when it was reached, as [`Timeline::nanoseconds`]
/// does. What it has beyond all phases is passed over.
pub fn phases(nanoseconds: &[u64]) -> impl Iterator<Item = (&'static str, Option<Duration>)> {
    Phase::ALL.iter().enumerate().map(|(index, (_, name))| {
        let reached = nanoseconds.get(index).copied().filter(|nanoseconds| *nanoseconds > 0);
        (*name, reached.map(Duration::from_nanos))
    })
}

/// A table with a line for each of `marks`, in the order in which they were reached: what it took, and the time since
/// the start. What was not reached comes last.
pub fn timing_table<'a>(marks: impl IntoIterator<Item = (&'a str, Option<Duration>)>) -> String {
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let mut marks: Vec<_> = marks.into_iter().collect();
    marks.sort_by_key(|(_, reached)| reached.unwrap_or(Duration::MAX));
    let mut table = format!("{:<24} {:>10} {:>10}\n", "phase", "took ms", "at ms");
    let mut before = Duration::ZERO;
    for (name, reached) in marks {
        let Some(at) = reached else {
            table.push_str(&format!("{name:<24} {:>10} {:>10}\n", "-", "-"));
            continue;
        };
        let took = milliseconds(at.saturating_sub(before));
        table.push_str(&format!("{name:<24} {took:>10.3} {:>10.3}\n", milliseconds(at)));
        before = at;
    }
    table
}

/// [`timing_table`] of all phases.
impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&timing_table(phases(&self.nanoseconds())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_mark_counts_and_phases_not_reached_show_a_dash() {
        let timeline = Timeline::starting_at(Instant::now());
        assert_eq!(timeline.reached(Phase::Kvm), None);
        timeline.mark(Phase::Kvm);
        let first = timeline.reached(Phase::Kvm);
        timeline.mark(Phase::Kvm);
        assert_eq!(timeline.reached(Phase::Kvm), first);
        let table = timeline.to_string();
        assert_eq!(table.lines().count(), 1 + Phase::ALL.len());
        assert!(table.lines().last().is_some_and(|line| line.split_whitespace().eq(["init", "-", "-"])));
    }

    #[test]
    fn a_guest_that_is_silent_until_its_init_runs_has_its_phases_in_order() {
        let timeline = Timeline::starting_at(Instant::now());
        for phase in [Phase::Kvm, Phase::FirstInstruction, Phase::Init, Phase::FirstConsoleByte] {
            timeline.mark(phase);
        }
        let table = timeline.to_string();
        let names: Vec<_> = table.lines().skip(1).filter_map(|line| line.split("  ").next()).collect();
        assert_eq!(
            names[..4],
            ["open KVM", "first guest instruction", "init", "first console byte"],
            "{table}"
        );
        assert!(table.lines().skip(5).all(|line| line.ends_with('-')), "{table}");
    }
}
