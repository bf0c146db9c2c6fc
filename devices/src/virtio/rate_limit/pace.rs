use std::num::NonZeroU64;
use std::sync::Mutex;
use std::time::Instant;

use super::{Bucket, Limit};
use crate::lock;

/// How fast a process reads what another one says that a guest may have taken over. What comes faster stays in their
/// socket, which is bounded.
#[derive(Debug)]
pub struct Pace(Mutex<Bucket>);

impl Pace {
    /// So many messages a second, and as many at once after a pause.
    pub fn new(per_second: NonZeroU64) -> Self {
        let limit = Limit { per_second, burst: per_second };
        Self(Mutex::new(Bucket::new(limit, Instant::now())))
    }

    /// Waits until one more may be read.
    pub fn keep(&self) {
        let mut bucket = lock(&self.0);
        if let Some(wait) = bucket.wait(Instant::now()) {
            std::thread::sleep(wait);
        }
        bucket.take(1, Instant::now());
    }
}
