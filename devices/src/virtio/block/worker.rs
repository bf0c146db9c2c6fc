//! A device at work: takes requests from the queue, brings them to the engine, and answers them.

use std::sync::Arc;

use virtio_bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;
use vm_memory::{Bytes, GuestAddress};

use super::super::queue::{ActiveQueue, Chain, Head};
use super::super::rate_limit::RateLimiter;
use super::super::{ActivateError, Activation};
use super::disk::{Disk, DiskId};
use super::engine::{Completion, Engine, MAX_IN_FLIGHT};
use super::metrics::BlockMetrics;
use super::request::{Action, Request, Status};
use super::transfer::{Next, Transfer};

/// A device at work: its queue, its engine, and the requests between them.
pub(super) struct Worker {
    queue: ActiveQueue,
    engine: Engine,
    /// Grows with the requests that are in flight at once; the engine numbers operations by the index.
    transfers: Vec<Transfer>,
    free: Vec<u16>,
    chain: Chain,
    /// The driver didn't accept FLUSH: a write has to be durable when it is answered (5.2.6.2).
    write_through: bool,
    metrics: Arc<BlockMetrics>,
}

impl Worker {
    /// Makes a worker for queue `index`.
    ///
    /// # Errors
    ///
    /// The queue isn't there.
    pub(super) fn new(
        mut activation: Activation,
        index: u16,
        engine: Engine,
        metrics: Arc<BlockMetrics>,
    ) -> Result<Self, ActivateError> {
        Ok(Self {
            queue: ActiveQueue::take(&mut activation, index)?,
            engine,
            transfers: Vec::new(),
            free: Vec::new(),
            chain: Chain::default(),
            write_through: activation.features & (1 << VIRTIO_BLK_F_FLUSH) == 0,
            metrics,
        })
    }

    /// Does all that can be done now: starts what is available, answers what is complete. What completes at
    /// once (from the host's page cache) is answered in the same turn.
    pub(super) fn turn(&mut self, disk: &Disk, id: &DiskId, limiter: &mut RateLimiter) {
        self.queue.start_turn();
        self.engine.set_wake_ups(false);
        loop {
            let mut progress = self.start_available(disk, id, limiter);
            self.engine.submit();
            progress |= self.answer_completed();
            if progress {
                continue;
            }
            self.engine.set_wake_ups(true);
            // What completed just before has woken nobody.
            if !self.answer_completed() {
                break;
            }
            self.engine.set_wake_ups(false);
        }
        self.queue.end_turn();
    }

    /// Starts requests until there are no more, or no more may be in flight, or the limiter lets none pass: then the
    /// rest stays in the queue until something completes, or the limiter's timer expires.
    fn start_available(&mut self, disk: &Disk, id: &DiskId, limiter: &mut RateLimiter) -> bool {
        let mut any = false;
        loop {
            if self.in_flight() >= usize::from(MAX_IN_FLIGHT) {
                self.metrics.queue_stalls.add(self.queue.has_available().into());
                return any;
            }
            if !self.queue.has_available() {
                // The driver may make a request available just before it is asked to notify the device.
                self.queue.await_more();
                if !self.queue.has_available() {
                    return any;
                }
            }
            let Some(mut reserved) = limiter.reserve(0) else {
                self.metrics.rate_limit_waits.increment();
                return any;
            };
            if !self.queue.pop(&mut self.chain) {
                limiter.give_back(reserved);
                return any;
            }
            limiter.correct(&mut reserved, self.start(disk, id));
            any = true;
        }
    }

    fn in_flight(&self) -> usize {
        self.transfers.len() - self.free.len()
    }

    /// Starts the request in `self.chain`, or answers it. Gives the bytes of data that it moves.
    fn start(&mut self, disk: &Disk, id: &DiskId) -> u64 {
        let head = self.chain.head;
        let Some(request) = Request::parse(&mut self.chain, self.queue.memory(), disk) else {
            self.queue.fail_chain(head);
            return 0;
        };
        let bytes = request.action.map_or(0, Action::data_bytes);
        let begun = match request.action {
            Ok(Action::GetId) => {
                let written = self.chain.writable.put(self.queue.memory(), id.bytes());
                self.answer(head, request.status, Status::Ok, u64::try_from(written).unwrap_or(0));
                return 0;
            }
            Ok(action) => self.begin(action, head, request.status),
            Err(status) => Err(status),
        };
        match begun {
            Ok(number) => self.start_operation(number),
            Err(status) => {
                self.metrics.failed_operations.increment();
                self.answer(head, request.status, status, 0);
            }
        }
        bytes
    }

    /// Makes a transfer of `action` and gives its number.
    fn begin(&mut self, action: Action, head: Head, status: GuestAddress) -> Result<u16, Status> {
        let number = match self.free.pop() {
            Some(number) => number,
            None => {
                self.transfers.push(Transfer::new());
                u16::try_from(self.transfers.len() - 1).map_err(|_| Status::IoError)?
            }
        };
        let transfer = self.transfers.get_mut(usize::from(number)).ok_or(Status::IoError)?;
        transfer.head = head;
        transfer.status = status;
        let set_up = transfer.set_up(action, &self.chain, self.queue.dma());
        if set_up.is_err() {
            self.free.push(number);
        }
        set_up.map(|()| number)
    }

    fn start_operation(&mut self, number: u16) {
        let Some(transfer) = self.transfers.get(usize::from(number)) else { return };
        // SAFETY: the ranges lie in guest memory (`dma`), which `self.queue` holds, or in `ZEROES`; their list belongs
        // to the transfer, which changes only after its completion was taken. Dropping `self` waits for that.
        unsafe { self.engine.start(number, transfer.operation(), transfer.offset, &transfer.ranges) };
    }

    /// Answers all requests that are complete, and starts the rest of those that are so in part.
    fn answer_completed(&mut self) -> bool {
        let mut any = false;
        while let Some(Completion { number, result }) = self.engine.pop() {
            any = true;
            let Some(transfer) = self.transfers.get_mut(usize::from(number)) else { continue };
            match transfer.completed(result, self.write_through) {
                Next::Start => self.start_operation(number),
                Next::Answer(status) => {
                    let (head, place, read) = (transfer.head, transfer.status, transfer.read);
                    self.metrics.answered(transfer.action, status);
                    self.free.push(number);
                    self.answer(head, place, status, read);
                }
            }
        }
        any
    }

    /// Writes the status byte and gives the chain back; `written` bytes of data went before it.
    fn answer(&mut self, head: Head, place: GuestAddress, status: Status, written: u64) {
        // The place is in RAM: that was checked with the request.
        let _ = self.queue.memory().write_obj(status.byte(), place);
        self.queue.add_used(head, u32::try_from(written + 1).unwrap_or(u32::MAX));
    }
}

impl Drop for Worker {
    /// Waits for all that is in flight: from here on, nothing touches guest memory.
    fn drop(&mut self) {
        while self.in_flight() > 0 {
            while let Some(Completion { number, .. }) = self.engine.pop() {
                self.free.push(number);
            }
            if self.in_flight() == 0 {
                return;
            }
            if let Err(error) = self.engine.wait() {
                tracing::error!(%error, "cannot wait for disk I/O; its memory is kept for good");
                std::mem::forget(std::mem::take(&mut self.transfers));
                std::mem::forget(self.queue.dma().clone());
                return;
            }
        }
    }
}
