//! What devices count.

use std::sync::atomic::{AtomicU64, Ordering};

/// A count that only grows. It is read by others than it is written by, and orders nothing.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `count`.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// Adds one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters of one thing: a device, a vCPU.
pub trait Metrics: Send + Sync {
    /// Calls `each` with the name of every counter and its count. Names are in snake case and end with what is
    /// counted: `read_bytes`, `read_operations`.
    fn visit(&self, each: &mut dyn FnMut(&'static str, u64));
}

/// Defines a struct of [`Counter`]s that is [`Metrics`], each counter called by the name of its field.
#[macro_export]
macro_rules! metrics {
    ($(#[$attribute:meta])* $visibility:vis struct $name:ident { $($(#[$doc:meta])* $counter:ident,)* }) => {
        $(#[$attribute])*
        #[derive(Debug, Default)]
        $visibility struct $name {
            $($(#[$doc])* pub $counter: $crate::metrics::Counter,)*
        }

        impl $crate::metrics::Metrics for $name {
            fn visit(&self, each: &mut dyn FnMut(&'static str, u64)) {
                $(each(stringify!($counter), self.$counter.get());)*
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    metrics! {
        /// Two counters.
        struct Two {
            /// The first.
            read_bytes,
            /// The second.
            read_operations,
        }
    }

    #[test]
    fn counters_are_visited_by_their_names() {
        let two = Two::default();
        two.read_bytes.add(512);
        two.read_operations.increment();
        two.read_bytes.add(512);
        let mut seen = Vec::new();
        two.visit(&mut |name, count| seen.push((name, count)));
        assert_eq!(seen, [("read_bytes", 1024), ("read_operations", 1)]);
    }
}
