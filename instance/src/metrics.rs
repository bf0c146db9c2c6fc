//! What a VM counts, as its control socket tells it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ProcessGauges;

/// Counters by kind, ID and name.
pub type Counters = BTreeMap<String, BTreeMap<String, BTreeMap<String, u64>>>;

/// All counts at one time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsReport {
    /// The process that runs the VM.
    pub process: ProcessGauges,
    /// Devices and vCPUs.
    pub counters: Counters,
}

impl MetricsReport {
    /// A counter of all things of a kind together; 0 where there is none.
    pub fn sum(&self, kind: &str, counter: &str) -> u64 {
        let things = self.counters.get(kind).into_iter().flat_map(BTreeMap::values);
        things.filter_map(|counters| counters.get(counter)).fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// All counters of all things of a kind together.
    pub fn total(&self, kind: &str) -> u64 {
        let counts =
            self.counters.get(kind).into_iter().flat_map(BTreeMap::values).flat_map(BTreeMap::values);
        counts.fold(0, |sum, count| sum.saturating_add(*count))
    }
}
