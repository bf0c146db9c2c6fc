//! Takes what is logged through `tracing`.

use std::sync::Arc;

use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};

use super::limit::{Rate, Verdict};
use super::{Log, line};

/// Gives each event that its bucket lets through to a queue of lines. There are no spans.
pub(super) struct LogSubscriber {
    level: LevelFilter,
    log: Arc<Log>,
}

impl LogSubscriber {
    pub(super) fn new(level: LevelFilter, log: Arc<Log>) -> Self {
        Self { level, log }
    }
}

impl Subscriber for LogSubscriber {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level)
    }

    fn event(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        let key = (metadata.callsite(), line::device_of(event));
        let verdict = self.log.judge(key, Rate::of(*metadata.level()));
        if verdict != Verdict::LeftOut {
            self.log.queue.push(&line::of_event(event, verdict));
        }
    }

    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}
    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}
    fn enter(&self, _span: &Id) {}
    fn exit(&self, _span: &Id) {}
}
