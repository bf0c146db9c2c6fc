//! What the start of a container spends its time on: marks of this process, and those of its VM's.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A point of a container's way that this process sees; those of the VM are `vmm::Phase`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The image is found, and pulled where it was missing.
    Image,
    /// It has a directory and a record.
    Record,
    /// The disk for its changes is made.
    Disk,
    /// The VM's process is made.
    Process,
    /// All is ready for the agent, which has not connected yet.
    Ready,
    /// The agent has connected.
    Agent,
    /// The command runs.
    Started,
    /// Its first byte of output has come.
    FirstOutput,
    /// The command has ended.
    Exited,
    /// The VM has ended.
    End,
}

impl Step {
    const ALL: [(Self, &'static str); 10] = [
        (Self::Image, "image"),
        (Self::Record, "record"),
        (Self::Disk, "disk for changes"),
        (Self::Process, "process of the VM"),
        (Self::Ready, "ready for the agent"),
        (Self::Agent, "agent connected"),
        (Self::Started, "container started"),
        (Self::FirstOutput, "first byte of output"),
        (Self::Exited, "container ended"),
        (Self::End, "VM ended"),
    ];
}

#[derive(Debug)]
struct Marks {
    start: Instant,
    /// Since the start, by step.
    own: [Option<Duration>; Step::ALL.len()],
    /// What the VM's process says, as `vmm::Timeline::nanoseconds`.
    vm: Vec<u64>,
}

/// When each step was first reached. Copies share their marks; any thread may mark.
#[derive(Clone, Debug)]
pub struct Timing(Arc<Mutex<Marks>>);

impl Timing {
    /// Marks since `start`, which is that of the VM's process too: the clock is the same for all processes.
    pub fn starting_at(start: Instant) -> Self {
        Self(Arc::new(Mutex::new(Marks { start, own: Default::default(), vm: Vec::new() })))
    }

    /// Since when they count.
    pub fn start(&self) -> Instant {
        self.lock().start
    }

    /// Notes that `step` is reached now; the first time counts.
    pub fn mark(&self, step: Step) {
        let mut marks = self.lock();
        let now = marks.start.elapsed();
        if let Some(mark) = marks.own.get_mut(step as usize) {
            mark.get_or_insert(now);
        }
    }

    /// Takes what the VM's process says of its phases.
    pub fn set_vm(&self, nanoseconds: Vec<u64>) {
        self.lock().vm = nanoseconds;
    }

    /// All that was reached as a table, in the order of time.
    pub fn table(&self) -> String {
        let marks = self.lock();
        let own = Step::ALL.iter().zip(marks.own).map(|((_, name), reached)| (*name, reached));
        vmm::timing_table(own.chain(vmm::phases(&marks.vm)).filter(|(_, reached)| reached.is_some()))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Marks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use vmm::{Phase, Timeline};

    use super::*;

    fn names(table: &str) -> Vec<&str> {
        table.lines().skip(1).filter_map(|line| line.split("  ").next()).collect()
    }

    #[test]
    fn marks_of_both_processes_are_one_table_in_the_order_of_time() {
        let start = Instant::now();
        let (timing, vm) = (Timing::starting_at(start), Timeline::starting_at(start));
        timing.mark(Step::Image);
        timing.mark(Step::Process);
        vm.mark(Phase::Kvm);
        vm.mark(Phase::FirstInstruction);
        timing.mark(Step::Ready);
        vm.mark(Phase::Init);
        timing.clone().mark(Step::Agent);
        // The first time counts.
        timing.mark(Step::Image);
        timing.set_vm(vm.nanoseconds());
        let table = timing.table();
        let expected = [
            "image",
            "process of the VM",
            "open KVM",
            "first guest instruction",
            "ready for the agent",
            "init",
            "agent connected",
        ];
        assert_eq!(names(&table), expected, "{table}");
    }

    #[test]
    fn a_process_that_says_nonsense_does_no_harm() {
        let timing = Timing::starting_at(Instant::now());
        timing.mark(Step::Image);
        for nonsense in [vec![], vec![u64::MAX; 1000], vec![0; 3]] {
            timing.set_vm(nonsense);
            let table = timing.table();
            assert!(table.lines().count() <= 1 + 1 + 8, "{table}");
            assert!(names(&table).contains(&"image"), "{table}");
        }
    }
}
