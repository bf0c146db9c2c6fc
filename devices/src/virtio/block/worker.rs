//! A device at work: takes requests from the queue, hands them to the engine, and answers them.

use std::collections::VecDeque;
use std::sync::Arc;

use virtio_bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;
use vm_memory::{Bytes, GuestAddress};

use super::super::queue::{ActiveQueue, Budget, Chain, Head};
use super::super::rate_limit::{RateLimiter, Reservation};
use super::super::{ActivateError, Activation, Queue};
use super::disk::{Disk, DiskId};
use super::engine::{Completion, Engine, MAX_IN_FLIGHT};
use super::metrics::BlockMetrics;
use super::request::{Action, Request, Status};
use super::transfer::{Next, Transfer};

/// The one queue (5.2.2).
const REQUESTS: u16 = 0;
/// Requests are taken from the queue as long as those in flight move fewer bytes than this: a reset waits for them.
const MAX_BYTES_IN_FLIGHT: u64 = 64 << 20;
/// What a turn may cost before messages to the thread are looked at again: some milliseconds.
pub(super) const BUDGET: Budget = Budget { descriptors: 8192, bytes: 16 << 20, host_calls: 256 };

/// What requests are carried out on. It stays when the driver resets the device.
pub(super) struct Host {
    pub(super) disk: Arc<Disk>,
    pub(super) id: DiskId,
    pub(super) engine: Engine,
    pub(super) limiter: RateLimiter,
    pub(super) metrics: Arc<BlockMetrics>,
}

/// The queue of an active device, and the requests in flight.
pub(super) struct Worker {
    queue: ActiveQueue,
    /// What the device was activated with, without the queue.
    activation: Activation,
    transfers: Transfers,
    bytes_in_flight: u64,
    /// Transfers whose next operation was left for another turn.
    deferred: VecDeque<u16>,
    chain: Chain,
    /// The driver didn't accept FLUSH: a write has to be durable when it is answered (5.2.6.2).
    write_through: bool,
}

/// The requests in flight, by the numbers of their operations. There are at most [`MAX_IN_FLIGHT`].
#[derive(Default)]
struct Transfers {
    /// Grows with the requests that are in flight at once.
    all: Vec<Transfer>,
    free: Vec<u16>,
}

impl Transfers {
    fn in_flight(&self) -> usize {
        self.all.len() - self.free.len()
    }

    /// A transfer to be set up, and its number; `None` where as many as may be are in flight.
    fn take(&mut self) -> Option<(u16, &mut Transfer)> {
        let number = match self.free.pop() {
            Some(number) => number,
            None if self.all.len() < usize::from(MAX_IN_FLIGHT) => {
                self.all.push(Transfer::new());
                u16::try_from(self.all.len() - 1).ok()?
            }
            None => return None,
        };
        let transfer = self.all.get_mut(usize::from(number))?;
        transfer.in_flight = true;
        Some((number, transfer))
    }

    /// The transfer that `number` was given to, where it is in flight.
    fn get(&mut self, number: u16) -> Option<&mut Transfer> {
        self.all.get_mut(usize::from(number)).filter(|transfer| transfer.in_flight)
    }

    /// The transfer is over, and its number free for another one. A number that is free already stays so, once.
    fn release(&mut self, number: u16) {
        if let Some(transfer) = self.get(number) {
            transfer.in_flight = false;
            self.free.push(number);
        }
    }
}

impl Worker {
    /// Makes a worker for the queue of `activation`.
    ///
    /// # Errors
    ///
    /// The driver did not enable the queue.
    pub(super) fn new(mut activation: Activation) -> Result<Self, ActivateError> {
        let queue = ActiveQueue::take(&mut activation, REQUESTS)?;
        Ok(Self {
            queue: queue.with_budget(BUDGET),
            transfers: Transfers::default(),
            bytes_in_flight: 0,
            deferred: VecDeque::new(),
            chain: Chain::default(),
            write_through: activation.features & (1 << VIRTIO_BLK_F_FLUSH) == 0,
            activation,
        })
    }

    /// Answers what is complete and starts what is available, up to the turn's budget. Whether the thread has more to
    /// do at once.
    ///
    /// The driver is signalled once, at the end. Until then it notifies the device of nothing: the queue is looked at
    /// again after each pass.
    pub(super) fn turn(&mut self, host: &mut Host) -> bool {
        self.queue.start_turn();
        let stopped = loop {
            self.answer_completed(host);
            let stopped = self.start_available(host);
            // While the driver waits for a signal, what was started is not left to the call that may block: what
            // completes at once, from the page cache of the host, is answered with the rest.
            if self.queue.unsignalled() > 0 && host.engine.submit() && self.queue.may_go_on() {
                continue;
            }
            if stopped == Stopped::Empty {
                self.queue.await_more();
                // The driver may make a request available just before it is asked to notify the device.
                if self.queue.has_available() {
                    continue;
                }
            }
            break stopped;
        };
        self.queue.end_turn();
        !self.deferred.is_empty() || stopped == Stopped::Budget
    }

    /// Answers what is complete, and starts nothing but the rest of what is not. When there is nothing in flight any
    /// more,
    /// [`into_queue`](Self::into_queue) can be called.
    pub(super) fn drain(&mut self, host: &mut Host) -> bool {
        self.queue.start_turn();
        self.answer_completed(host);
        self.queue.end_turn();
        !self.deferred.is_empty()
    }

    /// Forgets what is complete: the driver has reset the device.
    pub(super) fn discard(&mut self, host: &mut Host) {
        for number in self.deferred.drain(..) {
            self.transfers.release(number);
        }
        while let Some(Completion { number, .. }) = host.engine.pop() {
            self.transfers.release(number);
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.transfers.in_flight() == 0
    }

    /// Gives the queue back, and what it takes to go on with it. Nothing may be in flight.
    pub(super) fn into_queue(self) -> (Queue, Activation) {
        (self.queue.into_queue(), self.activation)
    }

    /// Starts requests until something stops it; what is not taken stays in the queue.
    fn start_available(&mut self, host: &mut Host) -> Stopped {
        loop {
            if self.transfers.in_flight() >= usize::from(MAX_IN_FLIGHT)
                || self.bytes_in_flight >= MAX_BYTES_IN_FLIGHT
            {
                host.metrics.queue_stalls.add(self.queue.has_available().into());
                return Stopped::Completions;
            }
            if host.limiter.is_waiting() {
                return Stopped::Limit;
            }
            if !self.queue.has_available() {
                return Stopped::Empty;
            }
            if !self.queue.may_go_on() {
                return Stopped::Budget;
            }
            let Some(reserved) = host.limiter.reserve(0) else {
                host.metrics.rate_limit_waits.increment();
                return Stopped::Limit;
            };
            if !self.queue.pop(&mut self.chain) {
                // The driver broke a rule.
                host.limiter.give_back(reserved);
                return Stopped::Empty;
            }
            self.start(host, reserved);
        }
    }

    /// Starts the request in `self.chain`, or answers it.
    fn start(&mut self, host: &mut Host, mut reserved: Reservation) {
        let head = self.chain.head;
        let Some(request) = Request::parse(&mut self.chain, self.queue.memory(), &host.disk) else {
            self.queue.fail_chain(head);
            return;
        };
        host.limiter.correct(&mut reserved, request.action.map_or(0, Action::data_bytes));
        let refused = match request.action {
            Ok(Action::GetId) => {
                let written = self.chain.writable.put(self.queue.memory(), host.id.bytes());
                self.answer(head, request.status, Status::Ok, u64::try_from(written).unwrap_or(0));
                return;
            }
            Ok(action) => match self.begin(action, head, request.status, reserved) {
                Ok(number) => {
                    self.bytes_in_flight += action.data_bytes();
                    self.start_operation(host, number);
                    return;
                }
                Err(status) => status,
            },
            Err(status) => status,
        };
        host.metrics.failed_operations.increment();
        self.answer(head, request.status, refused, 0);
    }

    /// Makes a transfer of `action` and returns its number.
    fn begin(
        &mut self,
        action: Action,
        head: Head,
        status: GuestAddress,
        reserved: Reservation,
    ) -> Result<u16, Status> {
        let (number, transfer) = self.transfers.take().ok_or(Status::IoError)?;
        transfer.head = head;
        transfer.status = status;
        transfer.reserved = reserved;
        let set_up = transfer.set_up(action, &self.chain, self.queue.dma());
        if set_up.is_err() {
            self.transfers.release(number);
        }
        set_up.map(|()| number)
    }

    fn start_operation(&mut self, host: &mut Host, number: u16) {
        let Some(transfer) = self.transfers.get(number) else {
            return self.lost(number);
        };
        self.queue.spend(transfer.operation_bytes(), 1);
        let (operation, (place, length)) = (transfer.operation(), host.disk.locate(transfer.offset));
        let ranges = transfer.ranges_within(length);
        // SAFETY: the ranges lie in guest memory (`dma`), which `self.queue` holds, or in `ZEROES`; their list belongs
        // to the transfer, which changes only after its completion was taken. The thread keeps `self` until then, and
        // `host` with the disk's files for longer.
        unsafe { host.engine.start(number, operation, place, ranges) };
    }

    /// Answers all requests that are complete, and starts the rest of those that are so in part.
    fn answer_completed(&mut self, host: &mut Host) {
        while let Some(number) = self.deferred.front().copied().filter(|_| self.queue.may_go_on()) {
            self.deferred.pop_front();
            self.start_operation(host, number);
        }
        while let Some(Completion { number, result }) = host.engine.pop() {
            let Some(transfer) = self.transfers.get(number) else {
                self.lost(number);
                continue;
            };
            match transfer.completed(result, self.write_through) {
                Next::Start if self.queue.may_go_on() => self.start_operation(host, number),
                // A request whose queue is broken is not answered, but what was started has to come to its end.
                Next::Start if self.queue.is_broken() => self.finished(host, number),
                Next::Start => self.deferred.push_back(number),
                Next::Answer(status) => {
                    let (head, place, read) = (transfer.head, transfer.status, transfer.read);
                    host.metrics.answered(transfer.action, status);
                    self.finished(host, number);
                    self.answer(head, place, status, read);
                }
            }
        }
    }

    /// The transfer is over.
    fn finished(&mut self, host: &mut Host, number: u16) {
        if let Some(transfer) = self.transfers.get(number) {
            self.bytes_in_flight = self.bytes_in_flight.saturating_sub(transfer.action.data_bytes());
            if transfer.freed() {
                host.limiter.correct(&mut transfer.reserved, 0);
            }
        }
        self.transfers.release(number);
    }

    /// A completion that belongs to no request in flight: the request that it was for is never answered, so the device
    /// needs a reset.
    fn lost(&mut self, number: u16) {
        tracing::error!(number, "the host completed disk I/O that was not started; the device needs a reset");
        self.queue.fail_chain(Head::default());
    }

    /// Writes the status byte and returns the chain; `written` bytes of data were written before it.
    fn answer(&mut self, head: Head, place: GuestAddress, status: Status, written: u64) {
        if let Err(error) = self.queue.memory().write_obj(status.byte(), place) {
            // It was in RAM when the request was checked.
            tracing::error!(%error, "cannot write the status of a disk request; the device needs a reset");
            self.queue.fail_chain(head);
        }
        self.queue.add_used(head, u32::try_from(written + 1).unwrap_or(u32::MAX));
    }
}

/// Why no more requests are taken from the queue for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stopped {
    /// There are no more; the driver notifies the device of the next one.
    Empty,
    /// As many as may be are in flight: a completion comes first.
    Completions,
    /// The rate limit: its timer wakes the thread.
    Limit,
    /// The turn's budget is spent.
    Budget,
}
