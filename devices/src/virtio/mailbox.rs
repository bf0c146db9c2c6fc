//! Messages to a device's thread, which are answered within a deadline.
//!
//! A device that has a thread makes it with [`DeviceThread::spawn`] when the device is made, before the guest runs. The
//! thread watches [`Mailbox::wake_fd`] with whatever else it waits for, takes [`Letter`]s with [`Mailbox::take`], and
//! ends when [`Mailbox::is_closed`] says so. The device's methods, which run on vCPU threads and on the event loop,
//! [`call`](DeviceThread::call) it.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::events::drain;
use crate::lock;

/// How long a thread may take to answer. A healthy one takes less than a millisecond, or as long as the host's storage
/// does.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);

thread_local! {
    /// When the devices that this thread drops have to have ended.
    static DROP_BY: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Has `drop_devices` drop devices, whose threads have as long as that of one device to end: 5 s, however many there
/// are. Tell all of them before ([`Suspend::end`](crate::Suspend::end)), so that they finish at the same time. Those
/// that do not end by then are left behind.
pub fn drop_together(drop_devices: impl FnOnce()) {
    drop_by(Instant::now() + DEADLINE, drop_devices);
}

fn drop_by(deadline: Instant, drop_devices: impl FnOnce()) {
    let before = DROP_BY.replace(Some(deadline));
    drop_devices();
    DROP_BY.set(before);
}

/// Why a thread gave no answer.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CallError {
    /// The thread did not take the message in time; it was withdrawn.
    #[error("the device's thread did not take a message within {} seconds", .0.as_secs_f32())]
    NotTaken(Duration),
    /// The thread took the message and did not answer in time. What it does with its answer is up to it: it learns that
    /// the caller has gone (`Letter::answer`).
    #[error("the device's thread did not answer within {} seconds", .0.as_secs_f32())]
    NotAnswered(Duration),
    /// The thread has ended.
    #[error("the device's thread has ended")]
    Ended,
}

/// Where a message is on its way.
enum Progress<C, R> {
    /// In the mailbox.
    Waiting(C),
    /// In the thread's hands.
    Taken,
    /// On its way back.
    Answered(R),
    /// The caller has gone, or has its answer.
    Done,
    /// The thread dropped it.
    Dropped,
}

/// A message, as both sides see it.
struct Exchange<C, R> {
    progress: Mutex<Progress<C, R>>,
    changed: Condvar,
}

impl<C, R> Exchange<C, R> {
    fn set(&self, progress: Progress<C, R>) {
        *lock(&self.progress) = progress;
        self.changed.notify_all();
    }
}

/// What both sides share.
struct Shared<C, R> {
    queue: Mutex<Queue<C, R>>,
    ended: Condvar,
    wake: EventFd,
}

struct Queue<C, R> {
    waiting: VecDeque<Arc<Exchange<C, R>>>,
    is_closed: bool,
    has_ended: bool,
}

/// The thread's end: where it finds its messages.
pub(super) struct Mailbox<C, R>(Arc<Shared<C, R>>);

/// A message that waits for its answer.
pub(super) struct Letter<C, R> {
    command: Option<C>,
    exchange: Arc<Exchange<C, R>>,
}

impl<C, R> Mailbox<C, R> {
    /// Readable when there is a message, or when the mailbox was closed; [`take`](Self::take) reads it empty.
    pub(super) fn wake_fd(&self) -> RawFd {
        self.0.wake.as_raw_fd()
    }

    /// Whether the device is gone: the thread has to end.
    pub(super) fn is_closed(&self) -> bool {
        lock(&self.0.queue).is_closed
    }

    /// The next message whose caller still waits. `None` where there is none; then the eventfd was read empty.
    pub(super) fn take(&self) -> Option<Letter<C, R>> {
        let mut queue = lock(&self.0.queue);
        while let Some(exchange) = queue.waiting.pop_front() {
            let mut progress = lock(&exchange.progress);
            match std::mem::replace(&mut *progress, Progress::Taken) {
                Progress::Waiting(command) => {
                    drop(progress);
                    return Some(Letter { command: Some(command), exchange });
                }
                other => *progress = other,
            }
        }
        if !queue.is_closed {
            drain(&self.0.wake);
        }
        None
    }
}

impl<C, R> Drop for Mailbox<C, R> {
    /// Messages that still wait are not answered any more.
    fn drop(&mut self) {
        let mut queue = lock(&self.0.queue);
        queue.has_ended = true;
        queue.waiting.drain(..).for_each(|exchange| exchange.set(Progress::Dropped));
        self.0.ended.notify_all();
    }
}

impl<C, R> Letter<C, R> {
    /// The message; `None` where it was taken out before.
    pub(super) fn command(&mut self) -> Option<C> {
        self.command.take()
    }

    /// Answers.
    ///
    /// # Errors
    ///
    /// Gives `answer` back where the caller waits no more: what it stands for has not happened for the caller, and has
    /// to be undone. A thread that was to give its queues back keeps them and goes on.
    pub(super) fn answer(self, answer: R) -> Result<(), R> {
        let mut progress = lock(&self.exchange.progress);
        if !matches!(*progress, Progress::Taken) {
            return Err(answer);
        }
        *progress = Progress::Answered(answer);
        self.exchange.changed.notify_all();
        Ok(())
    }
}

impl<C, R> Drop for Letter<C, R> {
    /// A message that was not answered never will be.
    fn drop(&mut self) {
        let mut progress = lock(&self.exchange.progress);
        if matches!(*progress, Progress::Taken) {
            *progress = Progress::Dropped;
            self.exchange.changed.notify_all();
        }
    }
}

/// A device's thread, as the device has it. Dropping it ends the thread.
pub(super) struct DeviceThread<C, R> {
    shared: Arc<Shared<C, R>>,
    thread: Option<JoinHandle<()>>,
    deadline: Duration,
}

impl<C: Send + 'static, R: Send + 'static> DeviceThread<C, R> {
    /// Starts a thread called `name` that runs `run` until the mailbox is closed.
    ///
    /// # Errors
    ///
    /// The host has no descriptor or no thread left.
    pub(super) fn spawn(name: &str, run: impl FnOnce(Mailbox<C, R>) + Send + 'static) -> io::Result<Self> {
        Self::with_deadline(name, DEADLINE, run)
    }

    /// The same with another deadline, for tests.
    pub(super) fn with_deadline(
        name: &str,
        deadline: Duration,
        run: impl FnOnce(Mailbox<C, R>) + Send + 'static,
    ) -> io::Result<Self> {
        let queue = Queue { waiting: VecDeque::new(), is_closed: false, has_ended: false };
        let shared = Arc::new(Shared {
            queue: Mutex::new(queue),
            ended: Condvar::new(),
            wake: EventFd::new(EFD_NONBLOCK)?,
        });
        let mailbox = Mailbox(Arc::clone(&shared));
        let thread = crate::spawn(name, move || run(mailbox))?;
        Ok(Self { shared, thread: Some(thread), deadline })
    }

    /// How long the thread may take to answer.
    pub(super) fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Sends `command` and waits for the answer, for as long as the deadline.
    ///
    /// # Errors
    ///
    /// [`CallError`]: the thread did not answer.
    pub(super) fn call(&self, command: C) -> Result<R, CallError> {
        self.send(command)?.wait_until(Instant::now() + self.deadline)
    }

    /// Sends `command`, whose answer is waited for later: a device with several threads has them work at the same time.
    ///
    /// # Errors
    ///
    /// [`CallError::Ended`].
    pub(super) fn send(&self, command: C) -> Result<Pending<C, R>, CallError> {
        let exchange =
            Arc::new(Exchange { progress: Mutex::new(Progress::Waiting(command)), changed: Condvar::new() });
        {
            let mut queue = lock(&self.shared.queue);
            if queue.has_ended {
                return Err(CallError::Ended);
            }
            queue.waiting.push_back(Arc::clone(&exchange));
        }
        self.wake();
        Ok(Pending { exchange, deadline: self.deadline })
    }
}

/// A message that was sent, as the caller has it. It has to be waited for: until then it is on its way.
#[must_use]
pub(super) struct Pending<C, R> {
    exchange: Arc<Exchange<C, R>>,
    deadline: Duration,
}

impl<C, R> Pending<C, R> {
    /// Waits for the answer until `end`.
    ///
    /// # Errors
    ///
    /// [`CallError`]: the thread did not answer.
    pub(super) fn wait_until(self, end: Instant) -> Result<R, CallError> {
        let is_open =
            |progress: &mut Progress<C, R>| matches!(progress, Progress::Waiting(_) | Progress::Taken);
        let (progress, left) = (lock(&self.exchange.progress), end.saturating_duration_since(Instant::now()));
        let result = self.exchange.changed.wait_timeout_while(progress, left, is_open);
        let (mut progress, _) = result.unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *progress, Progress::Done) {
            Progress::Answered(answer) => Ok(answer),
            Progress::Waiting(_) => Err(CallError::NotTaken(self.deadline)),
            Progress::Taken => Err(CallError::NotAnswered(self.deadline)),
            Progress::Done | Progress::Dropped => Err(CallError::Ended),
        }
    }
}

impl<C, R> DeviceThread<C, R> {
    /// Tells the thread to end. A device with several threads tells all of them before it waits for each.
    pub(super) fn close(&self) {
        lock(&self.shared.queue).is_closed = true;
        self.wake();
    }

    fn wake(&self) {
        // It fails only where the counter is full, and then the thread is being woken already.
        let _ = self.shared.wake.write(1);
    }

    /// Waits for the thread's end up to the deadline, and says whether it came.
    fn wait_for_end(&self) -> bool {
        let own = Instant::now() + self.deadline;
        let end = DROP_BY.get().map_or(own, |shared| shared.min(own));
        let mut queue = lock(&self.shared.queue);
        while !queue.has_ended {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let result = self.shared.ended.wait_timeout(queue, left);
            (queue, _) = result.unwrap_or_else(PoisonError::into_inner);
        }
        true
    }
}

impl<C, R> Drop for DeviceThread<C, R> {
    /// Ends the thread. One that does not end by the deadline is left behind, with the guest memory that it holds.
    fn drop(&mut self) {
        self.close();
        let Some(thread) = self.thread.take() else { return };
        let name = thread.thread().name().unwrap_or_default().to_owned();
        if !self.wait_for_end() {
            tracing::error!(name, "a device's thread does not end");
        } else if thread.join().is_err() {
            tracing::error!(name, "a device's thread panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::virtio::testing::wait_readable;

    const SHORT: Duration = Duration::from_millis(20);

    fn doubler() -> DeviceThread<u32, u32> {
        DeviceThread::spawn("doubler", |mailbox| {
            while !mailbox.is_closed() {
                wait_readable(mailbox.wake_fd());
                while let Some(mut letter) = mailbox.take() {
                    let number = letter.command().unwrap();
                    assert!(letter.command().is_none());
                    letter.answer(2 * number).unwrap();
                }
            }
        })
        .unwrap()
    }

    #[test]
    fn messages_are_answered_and_the_thread_ends_with_its_device() {
        let thread = doubler();
        for number in 0..100 {
            assert_eq!(thread.call(number), Ok(2 * number));
        }
        let shared = Arc::clone(&thread.shared);
        drop(thread);
        assert!(lock(&shared.queue).has_ended);
    }

    /// A thread that does not end until it is let.
    fn stuck(release: &Arc<std::sync::Barrier>) -> DeviceThread<(), ()> {
        let release = release.clone();
        DeviceThread::with_deadline("stuck", Duration::from_secs(60), move |_mailbox| {
            release.wait();
        })
        .unwrap()
    }

    #[test]
    fn any_number_of_stuck_threads_that_are_dropped_together_costs_one_deadline() {
        let release = Arc::new(std::sync::Barrier::new(9));
        let threads = [(); 8].map(|()| stuck(&release));
        let good = doubler();
        let state = Arc::clone(&good.shared);
        good.close();
        let start = Instant::now();
        drop_by(start + Duration::from_millis(200), || {
            drop(threads);
            // Told before, it has ended meanwhile, and is not left behind for the others' sake.
            drop(good);
        });
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(200) && took < Duration::from_secs(30), "{took:?}");
        assert!(lock(&state.queue).has_ended);
        assert_eq!(DROP_BY.get(), None);
        release.wait();
    }

    #[test]
    fn several_threads_work_at_the_same_time_and_end_together() {
        // Each waits until all of them have their message.
        let barrier = Arc::new(std::sync::Barrier::new(3));
        let threads = [(); 3].map(|()| {
            let barrier = Arc::clone(&barrier);
            DeviceThread::<u32, u32>::spawn("several", move |mailbox| {
                wait_readable(mailbox.wake_fd());
                let mut letter = mailbox.take().unwrap();
                let number = letter.command().unwrap();
                barrier.wait();
                letter.answer(number + 1).unwrap();
                while !mailbox.is_closed() {
                    wait_readable(mailbox.wake_fd());
                }
            })
            .unwrap()
        });
        let sent = threads.each_ref().map(|thread| thread.send(1).unwrap());
        let end = Instant::now() + DEADLINE;
        assert!(sent.into_iter().all(|pending| pending.wait_until(end) == Ok(2)));
        threads.iter().for_each(DeviceThread::close);
        assert!(threads.iter().all(DeviceThread::wait_for_end));
    }

    #[test]
    fn a_message_that_is_not_taken_is_withdrawn() {
        let (go, wait) = mpsc::channel::<()>();
        let thread = DeviceThread::<u32, u32>::with_deadline("slow", SHORT, move |mailbox| {
            wait.recv().unwrap();
            assert!(mailbox.take().is_none(), "it was withdrawn");
        })
        .unwrap();
        assert_eq!(thread.call(1), Err(CallError::NotTaken(SHORT)));
        go.send(()).unwrap();
        // A host that is busy may take longer than the deadline to let the thread run.
        assert!((0..1000).any(|_| thread.wait_for_end()));
        assert_eq!(thread.call(1), Err(CallError::Ended));
    }

    #[test]
    fn an_answer_that_comes_too_late_goes_back_to_the_thread() {
        let (go, wait) = mpsc::channel::<()>();
        let (result, answered) = mpsc::channel();
        let thread = DeviceThread::<u32, u32>::with_deadline("slow", SHORT, move |mailbox| {
            wait_readable(mailbox.wake_fd());
            let letter = mailbox.take().unwrap();
            wait.recv().unwrap();
            result.send(letter.answer(7)).unwrap();
        })
        .unwrap();
        assert_eq!(thread.call(1), Err(CallError::NotAnswered(SHORT)));
        go.send(()).unwrap();
        assert_eq!(answered.recv().unwrap(), Err(7));
    }

    #[test]
    fn a_thread_that_ends_or_forgets_a_message_gives_an_error_at_once() {
        let thread = DeviceThread::<u32, u32>::spawn("forgetful", |mailbox| {
            wait_readable(mailbox.wake_fd());
            drop(mailbox.take());
        })
        .unwrap();
        assert_eq!(thread.call(1), Err(CallError::Ended));
        assert!(thread.wait_for_end());
        assert_eq!(thread.call(2), Err(CallError::Ended));
    }

    #[test]
    fn a_thread_that_does_not_end_is_left_behind() {
        let (go, wait) = mpsc::channel::<()>();
        let thread = DeviceThread::<u32, u32>::with_deadline("stuck", SHORT, move |_mailbox| {
            let _ = wait.recv();
        })
        .unwrap();
        let before = Instant::now();
        drop(thread);
        assert!(before.elapsed() >= SHORT);
        drop(go);
    }
}
