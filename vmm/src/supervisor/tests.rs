use std::sync::Barrier;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{Receiver, channel};

use devices::{Section, Suspend, SuspendError};

use super::*;
use crate::vcpu::Gate;

const LIMITS: Limits = Limits { stop_timeout: Duration::from_secs(3600), timeout: None };

/// A supervisor, and the reason with which it ended the process.
fn supervisor(limits: Limits) -> (Supervisor, Receiver<ExitReason>) {
    let (sender, ended) = channel();
    let last_resort = Box::new(move |reason: &ExitReason| sender.send(reason.clone()).unwrap());
    (Supervisor::start(None, limits, last_resort).unwrap(), ended)
}

/// A VM whose threads never come to an end.
fn watch(supervisor: &Supervisor) -> (Arc<ExitSlot>, Arc<AtomicUsize>) {
    let (exit, presses) = (Arc::new(ExitSlot::new().unwrap()), Arc::new(AtomicUsize::new(0)));
    let button = Arc::new(PowerButton::new(Default::default(), presses.clone()).unwrap());
    let pauser = Arc::new(Pauser::new(Arc::new(Gate::new(1)), Vec::new()));
    supervisor.requests().watch(Target::new(exit.clone(), button, pauser, Background::start().unwrap()));
    (exit, presses)
}

/// A device that does not resume until it is let.
struct Stuck(Arc<Barrier>);

impl Suspend for Stuck {
    fn suspend(&self) -> Result<(), SuspendError> {
        Ok(())
    }
    fn save(&self) -> Result<Section, SuspendError> {
        Err(SuspendError::NotSuspended("stuck".into()))
    }
    fn restore(&self, _section: &Section) -> Result<(), SuspendError> {
        Ok(())
    }
    fn resume(&self) -> Result<(), SuspendError> {
        self.0.wait();
        Ok(())
    }
}

#[test]
fn a_second_request_is_heard_while_a_device_does_not_resume() {
    let (supervisor, ended) = supervisor(LIMITS);
    let (exit, presses) = (Arc::new(ExitSlot::new().unwrap()), Arc::new(AtomicUsize::new(0)));
    let button = Arc::new(PowerButton::new(Default::default(), presses.clone()).unwrap());
    let released = Arc::new(Barrier::new(2));
    let pauser = Arc::new(Pauser::new(Arc::new(Gate::new(1)), vec![Arc::new(Stuck(released.clone()))]));
    pauser.pause().unwrap();
    let background = Background::start().unwrap();
    supervisor.requests().watch(Target::new(exit.clone(), button, pauser.clone(), background));
    supervisor.requests().signal(libc::SIGTERM);
    let start = Instant::now();
    while presses.load(Ordering::SeqCst) < 2 {
        assert!(start.elapsed() < Duration::from_secs(20), "the supervisor does not press the button again");
        std::thread::yield_now();
    }
    assert!(pauser.gate().is_paused());
    supervisor.requests().signal(libc::SIGINT);
    let reason = ended.recv_timeout(FORCED_END + Duration::from_secs(10)).unwrap();
    assert_eq!((reason, pauser.gate().is_paused()), (ExitReason::Signal(libc::SIGINT), true));
    released.wait();
}

#[test]
fn a_process_whose_threads_do_not_end_is_ended_in_time() {
    let (supervisor, ended) = supervisor(LIMITS);
    let (exit, _) = watch(&supervisor);
    let start = Instant::now();
    exit.end(ExitReason::Signal(libc::SIGKILL));
    let reason = ended.recv_timeout(FORCED_END + Duration::from_secs(5)).unwrap();
    assert_eq!(reason, ExitReason::Signal(libc::SIGKILL));
    assert!(start.elapsed() >= FORCED_END);
}

#[test]
fn a_request_after_an_orderly_end_shortens_the_wait() {
    let (supervisor, ended) = supervisor(LIMITS);
    let (exit, presses) = watch(&supervisor);
    exit.end(ExitReason::PowerOff);
    supervisor.requests().signal(libc::SIGTERM);
    let reason = ended.recv_timeout(FORCED_END + Duration::from_secs(5)).unwrap();
    assert_eq!((reason, presses.load(Ordering::SeqCst)), (ExitReason::PowerOff, 0));
}

#[test]
fn a_vm_that_is_built_after_a_signal_ends_before_it_runs() {
    let (supervisor, ended) = supervisor(LIMITS);
    supervisor.requests().signal(libc::SIGINT);
    let (exit, presses) = watch(&supervisor);
    let start = Instant::now();
    while !exit.has_ended() {
        assert!(start.elapsed() < Duration::from_secs(20));
        std::thread::yield_now();
    }
    let reason = ExitReason::Signal(libc::SIGINT);
    assert_eq!((exit.reason(), presses.load(Ordering::SeqCst)), (Some(reason.clone()), 0));
    // Those who take it apart have as long as after any forced end.
    assert_eq!(ended.recv_timeout(FORCED_END + Duration::from_secs(10)).unwrap(), reason);
}

#[test]
fn a_process_that_builds_no_vm_after_a_signal_is_ended_in_time() {
    let (supervisor, ended) = supervisor(LIMITS);
    let start = Instant::now();
    supervisor.requests().signal(libc::SIGINT);
    let reason = ended.recv_timeout(FORCED_END + Duration::from_secs(10)).unwrap();
    assert_eq!(reason, ExitReason::Signal(libc::SIGINT));
    assert!(start.elapsed() >= FORCED_END);
}

const AT_ONCE: Limits = Limits { timeout: Some(Duration::ZERO), ..LIMITS };

#[test]
fn a_process_that_builds_no_vm_before_the_timeout_is_ended_in_time() {
    for stop_timeout in [Duration::ZERO, LIMITS.stop_timeout] {
        let (_supervisor, ended) = supervisor(Limits { stop_timeout, ..AT_ONCE });
        let reason = ended.recv_timeout(FORCED_END + Duration::from_secs(10)).unwrap();
        assert_eq!(reason, ExitReason::TimedOut);
    }
}

#[test]
fn a_vm_that_is_built_after_the_timeout_ends_before_it_runs() {
    let (supervisor, ended) = supervisor(AT_ONCE);
    // The thread does not signal that it has seen the timeout, but it sees it before what comes later.
    std::thread::sleep(Duration::from_millis(100));
    let (exit, presses) = watch(&supervisor);
    let reason = ended.recv_timeout(FORCED_END + Duration::from_secs(10)).unwrap();
    assert_eq!((exit.reason(), presses.load(Ordering::SeqCst)), (Some(reason.clone()), 0));
    assert_eq!(reason, ExitReason::TimedOut);
}

#[test]
fn a_second_request_before_there_is_a_vm_ends_the_process_at_once() {
    let (supervisor, ended) = supervisor(LIMITS);
    let start = Instant::now();
    let reason = loop {
        supervisor.requests().signal(libc::SIGTERM);
        match ended.recv_timeout(Duration::from_millis(20)) {
            Ok(reason) => break reason,
            Err(_) => assert!(start.elapsed() < FORCED_END + Duration::from_secs(10)),
        }
    };
    assert_eq!(reason, ExitReason::Signal(libc::SIGTERM));
    assert!(start.elapsed() >= policy::SAME_REQUEST);
}

#[test]
fn the_button_is_pressed_again_and_nothing_is_left_once_the_supervisor_is_dropped() {
    let (supervisor, ended) = supervisor(Limits { stop_timeout: Duration::from_millis(1500), ..LIMITS });
    let (exit, presses) = watch(&supervisor);
    supervisor.requests().signal(libc::SIGTERM);
    let start = Instant::now();
    while !exit.has_ended() {
        assert!(start.elapsed() < Duration::from_secs(20));
        std::thread::yield_now();
    }
    assert_eq!(exit.reason(), Some(ExitReason::Signal(libc::SIGTERM)));
    assert_eq!(presses.load(Ordering::SeqCst), 2);
    drop(supervisor);
    assert!(ended.recv().is_err(), "the other threads ended in time");
}
