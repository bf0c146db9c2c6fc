//! What a VM counts: its devices, its vCPUs, its process.

pub mod prometheus;

use std::sync::Arc;

use devices::metrics::Metrics;
use instance::{Counters, MetricsReport, ProcessGauges};

/// Whatever counts, each thing by its kind and its ID among its kind.
#[derive(Clone, Default)]
pub struct Registry(Vec<Thing>);

#[derive(Clone)]
struct Thing {
    kind: &'static str,
    id: String,
    counters: Arc<dyn Metrics>,
}

impl Registry {
    /// Adds a thing. IDs are unique among their kind.
    pub fn add(&mut self, kind: &'static str, id: String, counters: Arc<dyn Metrics>) {
        self.0.push(Thing { kind, id, counters });
    }

    /// Adds a virtio device (device ID: VIRTIO 1.2, section 5), by the name that Linux has for it or a number.
    pub fn add_virtio(&mut self, device_type: u32, counters: Arc<dyn Metrics>) {
        let kind = virtio_kind(device_type);
        let index = self.0.iter().filter(|thing| thing.kind == kind).count();
        let id = match kind {
            "block" => disk_name(index),
            "console" => format!("hvc{index}"),
            _ => format!("{kind}{index}"),
        };
        self.add(kind, id, counters);
    }

    /// All counts now. They are read one after the other, while what they count goes on.
    pub fn report(&self) -> MetricsReport {
        let mut all = Counters::new();
        for thing in &self.0 {
            let counters = all.entry(thing.kind.into()).or_default().entry(thing.id.clone()).or_default();
            thing.counters.visit(&mut |name, count| {
                counters.insert(name.into(), count);
            });
        }
        MetricsReport { process: ProcessGauges::now(), counters: all }
    }
}

fn virtio_kind(device_type: u32) -> &'static str {
    match device_type {
        1 => "net",
        2 => "block",
        3 => "console",
        4 => "rng",
        5 => "balloon",
        19 => "vsock",
        24 => "mem",
        25 => "sound",
        26 => "fs",
        27 => "pmem",
        _ => "virtio",
    }
}

/// The name of the disk with that index in the guest: vda to vdz, vdaa and so on.
fn disk_name(index: usize) -> String {
    let mut letters = Vec::new();
    let mut rest = index + 1;
    while rest > 0 {
        rest -= 1;
        letters.push(b'a' + u8::try_from(rest % 26).unwrap_or(0));
        rest /= 26;
    }
    letters
        .into_iter()
        .rev()
        .fold("vd".to_owned(), |name, letter| name + char::from(letter).encode_utf8(&mut [0]))
}

#[cfg(test)]
mod tests;
