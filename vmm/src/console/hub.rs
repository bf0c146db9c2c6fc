//! What all consoles of a VM output, and all who read it.
//!
//! Devices write from vCPU threads and from the event loop, and never wait for a reader: what is output goes to a
//! bounded [`Ring`], where each reader has a position of its own. A system call for each byte would keep a vCPU from
//! running, so readers are woken together, a few milliseconds after the first byte; one that fills its time with
//! writing is woken earlier where much has come.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use devices::Timer;
use devices::metrics::Metrics;
use devices::virtio::console::ConsoleSink;

use super::reader_credit::ReaderCredit;
use super::ring::{CAPACITY, HISTORY, Ring};

/// How long output may wait for more: too short to be seen, long enough for many bytes.
const BATCH_TIME: Duration = Duration::from_millis(5);
/// How much output waits no longer.
const BATCH_SIZE: u64 = 16 << 10;
/// The most that a reader takes at once.
const PORTION: usize = 64 << 10;

devices::metrics! {
    /// What a VM's consoles count, besides what each device counts.
    pub struct HubMetrics {
        /// Bytes that a reader was too slow for, over all readers.
        dropped_bytes,
    }
}

struct State {
    ring: Ring,
    /// The readers' positions; a place without a reader is empty.
    positions: Vec<Option<u64>>,
    /// The reader that a device with flow control waits for: the one that writes what the user asked for.
    awaited: Option<usize>,
    credit: ReaderCredit,
    /// The timer of the batch is set.
    ticking: bool,
    /// It is time for the awaited reader to read.
    due: bool,
    /// There will be no more output.
    closed: bool,
}

impl State {
    fn unread(&self, slot: usize) -> u64 {
        let position = self.positions.get(slot).copied().flatten();
        position.map_or(0, |position| self.ring.end() - position)
    }

    fn awaited_unread(&self) -> u64 {
        self.awaited.map_or(0, |slot| self.unread(slot))
    }

    fn trim(&mut self) {
        let seen = self.positions.iter().flatten().min().copied().unwrap_or(self.ring.end());
        self.ring.trim(seen);
    }
}

/// The hub; see the module.
pub(super) struct Hub {
    state: Mutex<State>,
    /// Wakes the awaited reader.
    wake: Condvar,
    /// A batch is complete.
    tick: Timer,
    /// A device that waits for room is to ask again; only one with flow control does.
    room: OnceLock<Timer>,
    metrics: Arc<HubMetrics>,
}

impl Hub {
    /// A hub without readers.
    ///
    /// # Errors
    ///
    /// Those of making a timer.
    pub(super) fn new() -> io::Result<Arc<Self>> {
        let state = State {
            ring: Ring::new(CAPACITY),
            positions: Vec::new(),
            awaited: None,
            credit: ReaderCredit::new(),
            ticking: false,
            due: false,
            closed: false,
        };
        Ok(Arc::new(Self {
            state: Mutex::new(state),
            wake: Condvar::new(),
            tick: Timer::new()?,
            room: OnceLock::new(),
            metrics: Arc::default(),
        }))
    }

    /// Prepares the hub for a device with flow control.
    ///
    /// # Errors
    ///
    /// Those of making a timer.
    pub(super) fn add_flow_control(&self) -> io::Result<()> {
        // There is one such device at most; a second one would have the timer of the first.
        let _ = self.room.set(Timer::new()?);
        Ok(())
    }

    fn set_room_timer(&self, wait: Duration) {
        if let Some(timer) = self.room.get() {
            set(timer, wait);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, bytes: &[u8]) {
        let mut state = self.lock();
        state.ring.push(bytes);
        if !state.ticking {
            state.ticking = true;
            set(&self.tick, BATCH_TIME);
        }
        if state.awaited_unread() >= BATCH_SIZE {
            self.call_awaited(&mut state);
        }
        state.trim();
    }

    /// Tells the awaited reader, once until it has read all.
    fn call_awaited(&self, state: &mut State) {
        if state.awaited.is_some() && !state.due {
            state.due = true;
            self.wake.notify_one();
        }
    }

    /// Becomes readable when a batch of output is complete; then [`tick`](Self::tick) is to be called.
    pub(super) fn tick_fd(&self) -> RawFd {
        self.tick.as_raw_fd()
    }

    /// Begins a new batch and tells the awaited reader of the old one.
    pub(super) fn tick(&self) {
        let mut state = self.lock();
        self.tick.acknowledge();
        state.ticking = false;
        if state.awaited_unread() > 0 {
            self.call_awaited(&mut state);
        }
    }

    /// Has a batch be complete after `wait`, even an empty one, or sooner where there is output.
    pub(super) fn tick_in(&self, wait: Duration) {
        if !self.lock().ticking {
            set(&self.tick, wait);
        }
    }

    /// The latest output, at least the last [`HISTORY`] bytes of it if there were as many.
    pub(super) fn latest(&self) -> Vec<u8> {
        let state = self.lock();
        let mut latest = Vec::new();
        let from = state.ring.end().saturating_sub(HISTORY as u64);
        state.ring.take(from, HISTORY, &mut latest);
        latest
    }

    /// What the awaited reader has not taken yet.
    #[cfg(test)]
    pub(super) fn awaited_unread(&self) -> u64 {
        self.lock().awaited_unread()
    }

    /// Says that there will be no more output.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        if !std::mem::replace(&mut state.closed, true) {
            self.wake.notify_all();
        }
    }

    /// What the hub counts.
    pub(super) fn metrics(&self) -> Arc<dyn Metrics> {
        self.metrics.clone()
    }

    fn add_reader(self: &Arc<Self>, state: &mut State, position: u64) -> Reader {
        let free = state.positions.iter().position(Option::is_none);
        let slot = free.unwrap_or(state.positions.len());
        match state.positions.get_mut(slot) {
            Some(place) => *place = Some(position),
            None => state.positions.push(Some(position)),
        }
        Reader { hub: Arc::clone(self), slot }
    }

    /// A reader of all that is still there and that comes.
    pub(super) fn reader(self: &Arc<Self>) -> Reader {
        let mut state = self.lock();
        let start = state.ring.start();
        self.add_reader(&mut state, start)
    }

    /// A reader of the most recent output and of what comes.
    pub(super) fn late_reader(self: &Arc<Self>) -> Reader {
        let mut state = self.lock();
        let recent = state.ring.recent();
        self.add_reader(&mut state, recent)
    }

    /// The reader that devices wait for, as long as its [`ReaderCredit`] lasts. There is one at most; a later one takes
    /// its place.
    pub(super) fn awaited_reader(self: &Arc<Self>) -> Reader {
        let reader = self.reader();
        self.lock().awaited = Some(reader.slot);
        reader
    }
}

fn set(timer: &Timer, wait: Duration) {
    // It fails for times that are none only.
    if let Err(error) = timer.set_once(wait) {
        tracing::error!(%error, "cannot set the console's timer");
    }
}

/// The end that a device writes to. Writing never waits and never fails.
#[derive(Clone)]
pub(super) struct Output(Arc<Hub>);

impl Output {
    pub(super) fn new(hub: &Arc<Hub>) -> Self {
        Self(Arc::clone(hub))
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.push(bytes);
        Ok(bytes.len())
    }

    /// Does nothing: the serial port asks for it after each byte.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ConsoleSink for Output {
    fn room(&mut self) -> usize {
        let mut state = self.0.lock();
        let unread = usize::try_from(state.awaited_unread()).unwrap_or(usize::MAX);
        let free = CAPACITY.saturating_sub(unread);
        let now = Instant::now();
        if free > 0 {
            state.credit.stop(now);
            return free;
        }
        match state.credit.wait(now) {
            Some(left) => {
                self.0.set_room_timer(left);
                0
            }
            // From now on the reader loses the oldest of what it has not read.
            None => CAPACITY,
        }
    }

    fn room_fd(&self) -> RawFd {
        // The caller refuses a descriptor that does not exist.
        self.0.room.get().map_or(-1, AsRawFd::as_raw_fd)
    }

    fn acknowledge(&mut self) {
        if let Some(timer) = self.0.room.get() {
            timer.acknowledge();
        }
    }
}

/// Reads what devices output, at its own pace.
pub(super) struct Reader {
    hub: Arc<Hub>,
    slot: usize,
}

impl Reader {
    fn take_locked(&self, state: &mut State, into: &mut Vec<u8>) -> usize {
        let Some(position) = state.positions.get(self.slot).copied().flatten() else { return 0 };
        let (start, end) = (state.ring.start(), state.ring.end());
        if position < start {
            let lost = start - position;
            self.hub.metrics.dropped_bytes.add(lost);
            into.extend(format!("\r\n[mvm: {lost} bytes of console output dropped]\r\n").into_bytes());
        }
        let taken = state.ring.take(position, PORTION, into);
        let position = position + taken.lost + taken.length as u64;
        if let Some(place) = state.positions.get_mut(self.slot) {
            *place = Some(position);
        }
        if state.awaited == Some(self.slot) {
            state.due &= position < end;
            if state.credit.read(taken.length, Instant::now()) {
                self.hub.set_room_timer(Duration::ZERO);
            }
        }
        state.trim();
        taken.length
    }

    /// Appends to `into` what comes next, at most [`PORTION`] and a line that says what was missed before it. Gives
    /// the count of the guest's bytes; 0 where all was read.
    pub(super) fn take(&self, into: &mut Vec<u8>) -> usize {
        self.take_locked(&mut self.hub.lock(), into)
    }

    /// The same for the awaited reader, after waiting until it is time to read. Gives 0 where there will be nothing
    /// more.
    pub(super) fn wait(&self, into: &mut Vec<u8>) -> usize {
        let mut state = self.hub.lock();
        while !(state.closed || state.due && state.unread(self.slot) > 0) {
            state = self.hub.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        self.take_locked(&mut state, into)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.hub.lock();
        if let Some(place) = state.positions.get_mut(self.slot) {
            *place = None;
        }
        if state.awaited == Some(self.slot) {
            state.awaited = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_readable(fd: RawFd, wait: Duration) -> bool {
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: the pointer is that of one `pollfd`.
        unsafe { libc::poll(&raw mut poll, 1, i32::try_from(wait.as_millis()).unwrap()) == 1 }
    }

    fn all_of(reader: &Reader) -> Vec<u8> {
        let mut all = Vec::new();
        while reader.take(&mut all) > 0 {}
        all
    }

    #[test]
    fn readers_are_told_of_a_batch_once() {
        let hub = Hub::new().unwrap();
        let (mut output, reader) = (Output::new(&hub), hub.reader());
        for byte in b"login: " {
            output.write_all(&[*byte]).unwrap();
        }
        assert!(is_readable(hub.tick_fd(), Duration::from_secs(10)));
        hub.tick();
        assert!(!is_readable(hub.tick_fd(), 4 * BATCH_TIME));
        assert_eq!(all_of(&reader), b"login: ");
        output.write_all(b"x").unwrap();
        assert!(is_readable(hub.tick_fd(), Duration::from_secs(10)), "a new batch");
    }

    #[test]
    fn each_reader_has_its_own_pace_and_is_told_what_it_missed() {
        let hub = Hub::new().unwrap();
        let (mut output, quick, slow) = (Output::new(&hub), hub.reader(), hub.reader());
        let line = [b'x'; 1000];
        let mut seen = 0;
        for _ in 0..2 * CAPACITY / line.len() {
            output.write_all(&line).unwrap();
            seen += all_of(&quick).len();
        }
        let total = 2 * CAPACITY / line.len() * line.len();
        assert_eq!(seen, total);
        let lost = total - CAPACITY;
        let mark = format!("\r\n[mvm: {lost} bytes of console output dropped]\r\n");
        let rest = all_of(&slow);
        assert!(rest.starts_with(mark.as_bytes()));
        assert_eq!(rest.len(), mark.len() + CAPACITY);
        assert_eq!(hub.metrics.dropped_bytes.get(), lost as u64);
    }

    #[test]
    fn the_awaited_reader_wakes_for_much_without_a_tick_and_for_the_end() {
        let hub = Hub::new().unwrap();
        let (mut output, reader) = (Output::new(&hub), hub.awaited_reader());
        let much = vec![b'x'; usize::try_from(BATCH_SIZE).unwrap()];
        let thread = std::thread::spawn(move || {
            let mut seen = Vec::new();
            while reader.wait(&mut seen) > 0 {}
            seen
        });
        output.write_all(&much).unwrap();
        output.write_all(b"the end").unwrap();
        hub.close();
        assert_eq!(thread.join().unwrap(), [&much[..], b"the end"].concat());
    }

    #[test]
    fn a_device_waits_for_room_as_long_as_credit_lasts_and_then_no_more() {
        let hub = Hub::new().unwrap();
        hub.add_flow_control().unwrap();
        let (mut output, reader) = (Output::new(&hub), hub.awaited_reader());
        assert_eq!(output.room(), CAPACITY);
        output.write_all(&[0; CAPACITY]).unwrap();
        assert_eq!(output.room(), 0);
        assert!(is_readable(output.room_fd(), Duration::from_secs(10)), "credit has an end");
        output.acknowledge();
        // The timer may go off a little early by the other clock.
        while output.room() == 0 {
            assert!(is_readable(output.room_fd(), Duration::from_secs(10)));
            output.acknowledge();
        }
        output.write_all(&[1; 10]).unwrap();
        assert_eq!(output.room(), CAPACITY, "it is not waited for again");
        reader.take(&mut Vec::new());
        assert_eq!(output.room(), PORTION, "it reads");
        output.write_all(&[1; PORTION]).unwrap();
        assert_eq!(output.room(), 0, "so it is waited for");
        reader.take(&mut Vec::new());
        assert!(is_readable(output.room_fd(), Duration::from_secs(10)), "and it has read");
    }

    #[test]
    fn without_a_reader_to_wait_for_there_is_always_room() {
        let hub = Hub::new().unwrap();
        let mut output = Output::new(&hub);
        let _log = hub.reader();
        output.write_all(&[0; CAPACITY]).unwrap();
        assert_eq!(output.room(), CAPACITY);
    }

    #[test]
    fn who_leaves_keeps_nothing_in_memory() {
        let hub = Hub::new().unwrap();
        let mut output = Output::new(&hub);
        drop(hub.reader());
        for _ in 0..CAPACITY / 100 {
            output.write_all(&[0; 100]).unwrap();
        }
        let state = hub.lock();
        assert!(state.ring.end() - state.ring.start() < 2 * crate::console::ring::HISTORY as u64);
    }
}
