//! Counts in Prometheus's text format, version 0.0.4.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use instance::{Counters, Identity, MetricsReport, ProcessGauges};

use crate::VmConfig;

/// The format's name in HTTP.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A label's value as it stands between the quotes.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Writes text that grows; that can't fail.
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: &dyn std::fmt::Display) {
        let labels: Vec<_> =
            labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escape(value))).collect();
        let braces = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "{name}{braces} {value}");
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: &dyn std::fmt::Display) {
        self.head(name, kind, help);
        self.sample(name, &[], value);
    }
}

/// The counts as Prometheus reads them, with what it needs to know of the VM.
pub fn page(report: &MetricsReport, identity: &Identity, config: &VmConfig, paused: bool) -> String {
    let mut page = Page(String::new());
    let id = identity.id.as_ref().map_or("", |id| id.as_str());
    let name = identity.name.as_ref().map_or("", |name| name.as_str());
    page.head("mvm_info", "gauge", "Who the VM is.");
    page.sample("mvm_info", &[("id", id), ("name", name), ("version", env!("CARGO_PKG_VERSION"))], &1);
    page.single("mvm_paused", "gauge", "Whether the VM is paused.", &u8::from(paused));
    page.single("mvm_memory_bytes", "gauge", "The guest's memory.", &config.memory.bytes());
    page.single("mvm_vcpus", "gauge", "The guest's vCPUs.", &config.cpus);
    write_process(&mut page, &report.process);
    write_counters(&mut page, &report.counters);
    page.0
}

/// By the names that Prometheus's client libraries have for them.
fn write_process(page: &mut Page, process: &ProcessGauges) {
    let (seconds, rest) = (process.cpu_nanoseconds / 1_000_000_000, process.cpu_nanoseconds % 1_000_000_000);
    let cpu = format!("{seconds}.{rest:09}");
    page.single("process_cpu_seconds_total", "counter", "Time on processors, the guest's included.", &cpu);
    let help = "Memory of the process that is in the host's, the guest's included.";
    page.single("process_resident_memory_bytes", "gauge", help, &process.resident_bytes);
    let help = "Resident memory that is of files or shared memory.";
    page.single("mvm_shared_memory_bytes", "gauge", help, &process.shared_bytes);
}

fn write_counters(page: &mut Page, counters: &Counters) {
    for (kind, things) in counters {
        let names: BTreeSet<&String> = things.values().flat_map(BTreeMap::keys).collect();
        for counter in names {
            let name = format!("mvm_{kind}_{counter}_total");
            page.head(&name, "counter", &format!("{} of {kind}.", counter.replace('_', " ")));
            for (id, counters) in things {
                if let Some(count) = counters.get(counter) {
                    page.sample(&name, &[("id", id)], count);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let mut page = Page(String::new());
        page.sample("x", &[("a", "b\"c\\d\ne"), ("f", "")], &7);
        assert_eq!(page.0, "x{a=\"b\\\"c\\\\d\\ne\",f=\"\"} 7\n");
    }
}
