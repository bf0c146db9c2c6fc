//! Which of the processor's users goes first while output flows.
//!
//! A process that wakes up interrupts one that has had its share. So the agent would interrupt a writer after each of
//! its writes, and make a packet of it that costs far more than its bytes, where they have one processor between them.
//! While much output comes it is a batch process, which waits its turn: some milliseconds at most.

use std::time::Duration;

/// After so much output without a pause it flows.
const FLOWING: usize = 64 << 10;
/// It flows no more after a pause as long.
const PAUSE: Duration = Duration::from_millis(20);

/// How much output comes.
#[derive(Debug, Default)]
pub struct Flow {
    bytes: usize,
    is_batch: bool,
}

impl Flow {
    /// Notes what was read of outputs.
    pub fn add(&mut self, count: usize) {
        self.bytes = self.bytes.saturating_add(count);
        if self.bytes >= FLOWING {
            self.set_batch(true);
        }
    }

    /// There is something else to do, or no output.
    pub fn end(&mut self) {
        self.bytes = 0;
        self.set_batch(false);
    }

    /// How long no output may come before that is to be said by [`end`](Self::end).
    pub fn patience(&self) -> Option<Duration> {
        self.is_batch.then_some(PAUSE)
    }

    fn set_batch(&mut self, is_batch: bool) {
        if is_batch != self.is_batch {
            self.is_batch = is_batch;
            set_policy(if is_batch { libc::SCHED_BATCH } else { libc::SCHED_OTHER });
        }
    }
}

/// Makes this an interactive process, as all are that the agent starts.
pub fn reset() {
    set_policy(libc::SCHED_OTHER);
}

/// Without it, all works as well, if slower.
fn set_policy(policy: i32) {
    let parameter = libc::sched_param { sched_priority: 0 };
    // SAFETY: the kernel reads the parameter, which lives until the call returns.
    unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> i32 {
        // SAFETY: the call takes no memory.
        unsafe { libc::sched_getscheduler(0) }
    }

    #[test]
    fn it_is_a_batch_process_while_output_flows() {
        let mut flow = Flow::default();
        flow.add(FLOWING - 1);
        assert_eq!((policy(), flow.patience()), (libc::SCHED_OTHER, None));
        flow.add(1);
        assert_eq!((policy(), flow.patience()), (libc::SCHED_BATCH, Some(PAUSE)));
        flow.end();
        assert_eq!((policy(), flow.patience()), (libc::SCHED_OTHER, None));
        flow.add(FLOWING - 1);
        assert_eq!(policy(), libc::SCHED_OTHER);
        flow.add(1);
        reset();
        assert_eq!(policy(), libc::SCHED_OTHER);
    }
}
