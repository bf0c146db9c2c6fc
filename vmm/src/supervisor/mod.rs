//! The thread that sees to it that the VM ends when it is asked to.
//!
//! It takes the process's ending signals and `--timeout`, presses the power button, and ends the VM by force when the
//! guest does not power off in time. It depends on no other thread: where a guest, a reader, a helper process or a disk
//! keeps another one busy, the process still ends, [`FORCED_END`] after a forced end and [`ORDERLY_END`] after any
//! other.

mod policy;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use devices::log::say;
use instance::{Signals, name_of};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::eventfd::EventFd;

pub(crate) use self::policy::SAME_REQUEST;
pub use self::policy::{Limits, Request};

use self::policy::{Policy, Step};
use crate::background::Background;
use crate::exit::{ExitReason, ExitSlot};
use crate::pause::Pauser;
use crate::power_button::PowerButton;

/// How long the process lives at most after the VM was ended by force: by a second request, by the end of
/// `--stop-timeout`, or by `mvm kill`.
pub const FORCED_END: Duration = Duration::from_secs(3);
/// How long it lives at most after any other end: a slow reader of the console gets what the guest said last.
pub const ORDERLY_END: Duration = Duration::from_secs(15);

/// What is left to do for a process whose other threads do not come to an end: it restores the terminal, cleans up and
/// ends the process.
pub type LastResort = Box<dyn FnOnce(&ExitReason) + Send>;

/// A VM that a supervisor ends.
pub(crate) struct Target {
    exit: Arc<ExitSlot>,
    button: Arc<PowerButton>,
    pauser: Arc<Pauser>,
    background: Background,
    /// The background thread has been asked to resume the VM and has not yet.
    resuming: Arc<AtomicBool>,
}

impl Target {
    /// The VM that ends by `exit`, has the power button `button`, and is resumed by `pauser` on the thread of
    /// `background`.
    pub(crate) fn new(
        exit: Arc<ExitSlot>,
        button: Arc<PowerButton>,
        pauser: Arc<Pauser>,
        background: Background,
    ) -> Self {
        Self { exit, button, pauser, background, resuming: Arc::default() }
    }
}

/// What the thread is told.
enum Message {
    /// There is a VM now.
    Target(Target),
    /// Do what this signal does when the process gets it.
    Signal(i32),
    /// End the VM at once.
    End(ExitReason),
}

#[derive(Default)]
struct Inbox {
    messages: Vec<Message>,
    finished: bool,
}

struct Shared {
    inbox: Mutex<Inbox>,
    wake: EventFd,
}

impl Shared {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the event is owned by `self`, which is borrowed as long as its descriptor.
        unsafe { BorrowedFd::borrow_raw(self.wake.as_raw_fd()) }
    }

    fn tell(&self, change: impl FnOnce(&mut Inbox)) {
        change(&mut self.inbox.lock().unwrap_or_else(PoisonError::into_inner));
        // It fails only where the counter is full, and then the thread is being woken already.
        let _ = self.wake.write(1);
    }
}

/// Asks a VM to end, from any thread.
#[derive(Clone)]
pub struct Requests(Arc<Shared>);

impl Requests {
    /// Does what `signal` does when the process gets it.
    pub fn signal(&self, signal: i32) {
        self.0.tell(|inbox| inbox.messages.push(Message::Signal(signal)));
    }

    /// Ends the VM at once for this reason: what its guest was for is done.
    pub fn end(&self, reason: ExitReason) {
        self.0.tell(|inbox| inbox.messages.push(Message::End(reason)));
    }
}

/// The thread; it ends when this is dropped.
pub struct Supervisor {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Supervisor {
    /// Starts the thread, which takes `signals` from now on. A VM that is built after a signal or the end of
    /// `--timeout` ends before it runs; where there is none [`FORCED_END`] later, or there is a second request,
    /// `last_resort` ends the process.
    ///
    /// # Errors
    ///
    /// Those of the system calls.
    pub fn start(signals: Option<Signals>, limits: Limits, last_resort: LastResort) -> io::Result<Self> {
        let shared = Arc::new(Shared { inbox: Mutex::default(), wake: EventFd::new(libc::EFD_NONBLOCK)? });
        let worker = Worker {
            shared: shared.clone(),
            signals,
            policy: Policy::new(limits, Instant::now()),
            target: None,
            end: None,
            early: None,
            last_resort: Some(last_resort),
        };
        let thread = devices::spawn("supervisor", move || worker.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// A way for others to ask the VM to end.
    pub fn requests(&self) -> Requests {
        Requests(self.shared.clone())
    }
}

impl Requests {
    /// Supervises `target` from now on.
    pub(crate) fn watch(&self, target: Target) {
        self.0.tell(|inbox| inbox.messages.push(Message::Target(target)));
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.shared.tell(|inbox| inbox.finished = true);
        if let Some(thread) = self.thread.take() {
            // One that panicked has ended as well.
            let _ = thread.join();
        }
    }
}

struct Worker {
    shared: Arc<Shared>,
    signals: Option<Signals>,
    policy: Policy,
    target: Option<Target>,
    /// Until when the process is to have ended, once the VM has.
    end: Option<Instant>,
    /// What asked for the end before there was a VM, and when.
    early: Option<(ExitReason, Instant)>,
    last_resort: Option<LastResort>,
}

impl Worker {
    fn run(mut self) {
        loop {
            self.wait();
            let now = Instant::now();
            // It fails where nothing was written: something else woke the thread.
            let _ = self.shared.wake.read();
            let mut inbox =
                std::mem::take(&mut *self.shared.inbox.lock().unwrap_or_else(PoisonError::into_inner));
            if inbox.finished {
                return;
            }
            self.look_for_end(now);
            let taken = self.signals.iter().flat_map(|signals| std::iter::from_fn(|| signals.next()));
            inbox.messages.extend(taken.map(Message::Signal));
            for message in inbox.messages {
                match message {
                    Message::Target(target) => self.watch(target),
                    Message::Signal(signal) => self.signal(signal, now),
                    Message::End(reason) => self.end_vm(reason),
                }
                self.look_for_end(now);
            }
            if self.end.is_none() {
                while let Some(step) = self.policy.step(now) {
                    if self.target.is_none() {
                        // No signal has been passed to the policy, so that it can only be `--timeout`.
                        self.ask_early(ExitReason::TimedOut, now);
                        break;
                    }
                    self.act(step);
                }
            }
            self.look_for_end(now);
            if self.end.is_some_and(|deadline| deadline <= now) {
                return self.end_process();
            }
        }
    }

    /// Waits for a signal, a request, the VM's end, or the next thing to do.
    fn wait(&self) {
        let next = self.end.or_else(|| self.policy.next());
        let timeout = next.map(|next| next.saturating_duration_since(Instant::now()));
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut fds = vec![PollFd::from_borrowed_fd(self.shared.wake_fd(), PollFlags::IN)];
        fds.extend(self.signals.as_ref().map(|signals| PollFd::new(signals, PollFlags::IN)));
        // Once the end is seen, it is not waited for again.
        if let Some(target) = self.target.as_ref().filter(|_| self.end.is_none()) {
            fds.push(PollFd::from_borrowed_fd(target.exit.ended(), PollFlags::IN));
        }
        // Interrupted or failed, what there is to do is looked for all the same.
        let _ = poll(&mut fds, timeout.as_ref());
    }

    fn watch(&mut self, target: Target) {
        // The VM does not run then, and those who built it take it apart.
        if let Some((reason, _)) = &self.early {
            target.exit.end(reason.clone());
        }
        self.target = Some(target);
    }

    fn signal(&mut self, signal: i32, now: Instant) {
        if self.target.is_none() {
            return self.ask_early(ExitReason::Signal(signal), now);
        }
        if let Some(end) = &mut self.end {
            // A second request while the VM is ending waits no longer than a forced end takes.
            if self.policy.signal(signal, now).is_some() || self.policy.is_second(now) {
                *end = (*end).min(now + FORCED_END);
            }
        } else if let Some(step) = self.policy.signal(signal, now) {
            self.act(step);
        }
    }

    /// A VM that is not built yet is ended when it is.
    fn end_vm(&mut self, reason: ExitReason) {
        match &self.target {
            Some(target) => target.exit.end(reason),
            None => {
                self.early.get_or_insert((reason, Instant::now()));
            }
        }
    }

    /// There is no guest yet that could power off. What is there of the VM is left to those who build it, as they know
    /// what has to be removed; it takes them milliseconds, unless a file or a helper process is stuck.
    fn ask_early(&mut self, reason: ExitReason, now: Instant) {
        match &self.early {
            None => {
                self.early = Some((reason, now));
                self.end = Some(now + FORCED_END);
            }
            Some((_, first)) if now.saturating_duration_since(*first) < policy::SAME_REQUEST => {}
            Some(_) => self.end = Some(now),
        }
    }

    fn act(&self, step: Step) {
        match step {
            Step::Ask(request) => {
                let grace = self.policy.limits().stop_timeout.as_secs_f64();
                let who = match request {
                    Request::Signal(signal) => name_of(signal),
                    Request::Timeout => "--timeout expired".into(),
                };
                say(format_args!("{who}: pressed the power button; forcing in {grace} s"));
                if request == Request::Timeout
                    && let Some(target) = &self.target
                {
                    target.exit.time_is_up();
                }
                self.resume_and_press();
            }
            Step::AskAgain => self.resume_and_press(),
            Step::Force { reason, waited } => {
                match waited {
                    Some(waited) if !waited.is_zero() => {
                        say(format_args!(
                            "the guest did not power off in {} s: ended by force",
                            waited.as_secs_f64()
                        ));
                    }
                    Some(_) => {}
                    None => say(format_args!("{reason}, the second request: ended by force")),
                }
                if let Some(target) = &self.target {
                    target.exit.end(reason);
                }
            }
        }
    }

    /// Presses the power button, and resumes a guest that is paused, as it could not react. That may take seconds, in
    /// which a second request has to be heard.
    fn resume_and_press(&self) {
        let Some(target) = &self.target else { return };
        if target.pauser.gate().is_paused() && !target.resuming.swap(true, Ordering::SeqCst) {
            let (pauser, resuming) = (target.pauser.clone(), target.resuming.clone());
            let resume = move || {
                if let Err(error) = pauser.resume() {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot resume a device");
                }
                resuming.store(false, Ordering::SeqCst);
            };
            if !target.background.run(Box::new(resume)) {
                // Too many requests are waiting; it is tried again with the next press.
                target.resuming.store(false, Ordering::SeqCst);
            }
        }
        if let Err(error) = target.button.press() {
            tracing::warn!(%error, "cannot press the guest's power button");
        }
    }

    fn look_for_end(&mut self, now: Instant) {
        let Some(target) = &self.target else { return };
        let Some(reason) = target.exit.reason() else { return };
        if self.end.is_none() {
            let patience = if reason.is_forced() { FORCED_END } else { ORDERLY_END };
            self.end = Some(now + patience);
        }
    }

    /// The other threads did not come to an end in time.
    fn end_process(&mut self) {
        let reason = self.target.as_ref().and_then(|target| target.exit.reason());
        let reason = reason.or_else(|| self.early.take().map(|(reason, _)| reason));
        if let Some((reason, last_resort)) = reason.zip(self.last_resort.take()) {
            last_resort(&reason);
        }
    }
}

#[cfg(test)]
mod tests;
