//! The pause gate: keeps vCPUs out of the guest.
//!
//! Each vCPU has a word with a bit for every [`Holder`]. Its thread reads that word before it enters the guest, which
//! is all that the gate costs a running VM. While a bit is set the thread is *parked*: it has completed the instruction
//! whose exit it handled last, its registers can be read and changed, and it makes the calls on its descriptor that
//! other threads ask for, as the ioctls of a vCPU have to come from one thread (KVM API, 2).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;
use thiserror::Error;

use super::kick;

/// A vCPU leaves the guest within microseconds of the signal. It is sent again for hosts that lose an interrupt.
const KICK_INTERVAL: Duration = Duration::from_millis(20);
/// How long a vCPU may take to park. Its thread may be in a device, which takes as long as the host's disk does.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Who holds a vCPU. It runs when no holder is left: a debugger's stop outlasts a `resume`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Holder {
    /// The user, by whatever command.
    User = 1 << 0,
    /// A debugger.
    Debugger = 1 << 1,
    /// The VM was built and does not run yet.
    Launch = 1 << 2,
}

/// Why the gate could not do what was asked.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum GateError {
    /// A vCPU did not leave the guest, or its thread is in a device that does not return.
    #[error("vCPU {0} does not stop: it waits for one of its devices")]
    StillRunning(usize),
    /// There is no such vCPU, it runs, or its thread has not started or has ended.
    #[error("vCPU {0} is not paused")]
    NotPaused(usize),
}

/// A call on the descriptor of a parked vCPU.
type Work = Box<dyn FnOnce(&mut VcpuFd) + Send>;

/// The pause gate of a VM. Any thread may call it; methods that wait say so.
pub struct Gate {
    /// A word of [`Holder`]s for each vCPU.
    held: Box<[AtomicU8]>,
    state: Mutex<State>,
    /// Wakes parked vCPUs.
    vcpus: Condvar,
    /// Wakes threads that wait for vCPUs to park.
    waiters: Condvar,
}

struct State {
    slots: Vec<Slot>,
    /// How many threads wait for vCPUs to park. A wake-up is a system call even if none waits.
    waiting: usize,
    /// The VM ends: no thread waits any more.
    ended: bool,
}

/// A vCPU's thread.
#[derive(Default)]
struct Slot {
    /// There is a thread, or will be in a moment.
    expected: bool,
    /// The thread, from when it starts until it ends.
    thread: Option<kick::Thread>,
    /// It waits at the gate.
    parked: bool,
    work: VecDeque<Work>,
}

impl Gate {
    /// An open gate for `cpus` vCPUs.
    pub fn new(cpus: u32) -> Self {
        Self {
            held: (0..cpus).map(|_| AtomicU8::new(0)).collect(),
            state: Mutex::new(State {
                slots: (0..cpus).map(|_| Slot::default()).collect(),
                waiting: 0,
                ended: false,
            }),
            vcpus: Condvar::new(),
            waiters: Condvar::new(),
        }
    }

    /// How many vCPUs there are.
    pub fn cpus(&self) -> usize {
        self.held.len()
    }

    /// Holds all vCPUs and returns once none is in the guest. It may come before they start: then they start held.
    /// Holding vCPUs that are held already, or have ended, succeeds.
    ///
    /// A vCPU's own thread must not call it, as it would wait for itself; see [`Self::hold`].
    ///
    /// # Errors
    ///
    /// [`GateError::StillRunning`] after ten seconds; the vCPUs stay held.
    pub fn pause(&self, holder: Holder) -> Result<(), GateError> {
        self.hold(holder);
        self.wait_until_parked()
    }

    /// Holds all vCPUs, without waiting until they are parked.
    pub fn hold(&self, holder: Holder) {
        for word in &self.held {
            word.fetch_or(holder as u8, Ordering::SeqCst);
        }
        self.lock().kick();
    }

    /// Waits until all held vCPUs are parked, or the VM ends.
    ///
    /// # Errors
    ///
    /// [`GateError::StillRunning`] after ten seconds.
    pub fn wait_until_parked(&self) -> Result<(), GateError> {
        let start = Instant::now();
        let mut state = self.lock();
        loop {
            let runs = |(word, slot): (&AtomicU8, &Slot)| {
                slot.expected && !slot.parked && word.load(Ordering::SeqCst) != 0
            };
            let Some(running) = self.held.iter().zip(&state.slots).position(runs) else { return Ok(()) };
            if state.ended {
                return Ok(());
            }
            if start.elapsed() > PAUSE_TIMEOUT {
                return Err(GateError::StillRunning(running));
            }
            let timed_out;
            state.waiting += 1;
            (state, timed_out) = self
                .waiters
                .wait_timeout(state, KICK_INTERVAL)
                .map(|(state, result)| (state, result.timed_out()))
                .unwrap_or_else(|poisoned| {
                    let (state, result) = poisoned.into_inner();
                    (state, result.timed_out())
                });
            state.waiting -= 1;
            if timed_out {
                state.kick();
            }
        }
    }

    /// Releases all vCPUs that `holder` holds; those that no other holder holds run.
    pub fn resume(&self, holder: Holder) {
        for word in &self.held {
            word.fetch_and(!(holder as u8), Ordering::SeqCst);
        }
        self.wake();
    }

    /// Releases one vCPU that `holder` holds. A number without a vCPU has no effect.
    pub fn resume_one(&self, holder: Holder, vcpu: usize) {
        if let Some(word) = self.held.get(vcpu) {
            word.fetch_and(!(holder as u8), Ordering::SeqCst);
        }
        self.wake();
    }

    /// Whether every vCPU is held.
    pub fn is_paused(&self) -> bool {
        self.held.iter().all(|word| word.load(Ordering::SeqCst) != 0)
    }

    /// Whether `holder` holds every vCPU.
    pub fn is_paused_by(&self, holder: Holder) -> bool {
        self.held.iter().all(|word| word.load(Ordering::SeqCst) & holder as u8 != 0)
    }

    /// Has the thread of a parked vCPU do `work`, and returns its result. `work` must not wait for the gate.
    ///
    /// # Errors
    ///
    /// [`GateError::NotPaused`], also if the VM ends meanwhile.
    pub fn with_vcpu<R: Send + 'static>(
        &self,
        vcpu: usize,
        work: impl FnOnce(&mut VcpuFd) -> R + Send + 'static,
    ) -> Result<R, GateError> {
        let (sender, result) = mpsc::sync_channel(1);
        let work = Box::new(move |fd: &mut VcpuFd| {
            // The caller waits below.
            let _ = sender.send(work(fd));
        });
        {
            let mut state = self.lock();
            let ended = state.ended;
            match state.slots.get_mut(vcpu) {
                Some(slot) if slot.parked && !ended => slot.work.push_back(work),
                _ => return Err(GateError::NotPaused(vcpu)),
            }
            self.vcpus.notify_all();
        }
        // The thread leaves the gate only when its work is done or, at the VM's end, dropped, and the sender with it.
        result.recv().map_err(|_| GateError::NotPaused(vcpu))
    }

    /// Whether a vCPU has to park before it enters the guest again. A running VM calls nothing else.
    #[inline]
    pub(super) fn holds(&self, vcpu: usize) -> bool {
        self.held.get(vcpu).is_some_and(|word| word.load(Ordering::SeqCst) != 0)
    }

    /// Parks the calling thread, that of `vcpu`, until it is released or the VM ends.
    pub(super) fn park(&self, vcpu: usize, fd: &mut VcpuFd) {
        self.park_before_start(vcpu, fd);
        // Tells a guest with kvmclock that it was paused, so that its watchdogs do not fire (KVM API,
        // KVM_KVMCLOCK_CTRL). It fails for a guest without kvmclock, which needs nothing.
        let _ = fd.kvmclock_ctrl();
    }

    /// The same for a vCPU that has not run yet: its guest has no clock that time could have gone by.
    pub(super) fn park_before_start(&self, vcpu: usize, fd: &mut VcpuFd) {
        let mut state = self.lock();
        state.set_parked(vcpu, true);
        self.wake_waiters(&state);
        loop {
            if let Some(work) = state.next_work(vcpu) {
                drop(state);
                work(fd);
                state = self.lock();
            } else if state.ended || !self.holds(vcpu) {
                break;
            } else {
                state = self.vcpus.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
        state.set_parked(vcpu, false);
    }

    /// The VM ends: wakes parked vCPUs for good, gets the others out of the guest, and returns once their threads have
    /// ended. The signal is sent until then.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        self.wake_vcpus(&state);
        self.wake_waiters(&state);
        // Threads that end wake this one.
        state.waiting += 1;
        while state.slots.iter().any(|slot| slot.thread.is_some()) {
            state.kick();
            let waited = self.waiters.wait_timeout(state, KICK_INTERVAL);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting -= 1;
    }

    /// Says that the thread of `vcpu` is about to start, so that a pause waits for it.
    pub(super) fn expect(&self, vcpu: usize) {
        if let Some(slot) = self.lock().slots.get_mut(vcpu) {
            slot.expected = true;
        }
    }

    /// Makes the calling thread known as that of `vcpu`, until the guard is dropped.
    pub(super) fn enter(&self, vcpu: usize) -> Present<'_> {
        if let Some(slot) = self.lock().slots.get_mut(vcpu) {
            slot.expected = true;
            slot.thread = Some(kick::Thread::current());
        }
        Present { gate: self, vcpu }
    }

    fn wake(&self) {
        // Under the lock, so that a thread which has just found itself held is not missed on its way to sleep.
        self.wake_vcpus(&self.lock());
    }

    fn wake_vcpus(&self, state: &State) {
        if state.slots.iter().any(|slot| slot.parked) {
            self.vcpus.notify_all();
        }
    }

    fn wake_waiters(&self, state: &State) {
        if state.waiting > 0 {
            self.waiters.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Sends the signal to all threads that are not parked. They cannot end meanwhile, as that takes the lock.
    fn kick(&self) {
        for thread in self.slots.iter().filter(|slot| !slot.parked).filter_map(|slot| slot.thread) {
            // SAFETY: the slot has the thread only as long as it lives, see `Present`.
            unsafe { thread.kick() };
        }
    }

    fn set_parked(&mut self, vcpu: usize, parked: bool) {
        if let Some(slot) = self.slots.get_mut(vcpu) {
            slot.parked = parked;
        }
    }

    fn next_work(&mut self, vcpu: usize) -> Option<Work> {
        self.slots.get_mut(vcpu)?.work.pop_front()
    }
}

/// Exists while a vCPU's thread runs.
pub(super) struct Present<'a> {
    gate: &'a Gate,
    vcpu: usize,
}

impl Drop for Present<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        let slot = state.slots.get_mut(self.vcpu).map(std::mem::take);
        self.gate.wake_waiters(&state);
        drop(state);
        // Calls that were not made are dropped here, without the lock.
        drop(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_holder_releases_its_own_hold() {
        let gate = Gate::new(2);
        assert!(!gate.is_paused());
        // Twice has the same effect.
        for _ in 0..2 {
            gate.pause(Holder::User).unwrap();
        }
        gate.pause(Holder::Debugger).unwrap();
        gate.resume(Holder::User);
        assert!(gate.is_paused() && !gate.is_paused_by(Holder::User));
        gate.resume_one(Holder::Debugger, 1);
        assert!(gate.holds(0) && !gate.holds(1) && !gate.is_paused());
        gate.resume(Holder::Debugger);
        gate.resume(Holder::Debugger);
        assert!(!gate.holds(0));
    }

    #[test]
    fn nothing_is_done_to_a_vcpu_that_is_not_parked() {
        let gate = Gate::new(1);
        gate.pause(Holder::User).unwrap();
        for vcpu in [0, 1, usize::MAX] {
            assert_eq!(gate.with_vcpu(vcpu, |_| ()), Err(GateError::NotPaused(vcpu)));
        }
    }

    #[test]
    fn a_thread_that_does_not_come_to_the_gate_is_waited_for_until_it_does_or_ends() {
        kick::install().unwrap();
        let gate = Gate::new(1);
        std::thread::scope(|scope| {
            let (leave, left) = mpsc::channel::<()>();
            let (entered, has_entered) = mpsc::channel();
            let gate = &gate;
            scope.spawn(move || {
                let _present = gate.enter(0);
                entered.send(()).unwrap();
                left.recv().unwrap();
            });
            has_entered.recv().unwrap();
            let pause = scope.spawn(|| gate.pause(Holder::User));
            while !gate.is_paused() {
                std::thread::yield_now();
            }
            assert!(!pause.is_finished());
            leave.send(()).unwrap();
            assert_eq!(pause.join().unwrap(), Ok(()));
        });
    }
}
