//! What a VM counts: its devices, its vCPUs, its process.

pub mod prometheus;

use std::sync::Arc;

use devices::metrics::Metrics;
use instance::Counters;

use crate::config::DeviceKind;

/// Whatever counts, each thing by its kind and its ID among its kind.
#[derive(Clone, Default)]
pub struct MetricsRegistry(Vec<Thing>);

#[derive(Clone)]
struct Thing {
    kind: &'static str,
    id: String,
    counters: Arc<dyn Metrics>,
}

impl MetricsRegistry {
    /// Adds a thing. IDs are unique among their kind.
    pub fn add(&mut self, kind: &'static str, id: String, counters: Arc<dyn Metrics>) {
        self.0.push(Thing { kind, id, counters });
    }

    /// Adds a virtio device, called by its kind and its place among those of the same kind. Gives its ID,
    /// which is its name in log lines.
    pub fn add_device(&mut self, kind: DeviceKind, counters: Arc<dyn Metrics>) -> String {
        let index = self.0.iter().filter(|thing| thing.kind == kind.name()).count();
        let id = kind.id(index);
        self.add(kind.name(), id.clone(), counters);
        id
    }

    /// All counts now. They are read one after the other, while what they count goes on.
    pub fn counters(&self) -> Counters {
        let mut all = Counters::new();
        for thing in &self.0 {
            let counters = all.entry(thing.kind.into()).or_default().entry(thing.id.clone()).or_default();
            thing.counters.visit(&mut |name, count| {
                counters.insert(name.into(), count);
            });
        }
        all
    }
}

#[cfg(test)]
mod tests;
