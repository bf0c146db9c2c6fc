use std::sync::Arc;

use instance::{Identity, MetricsReport, ProcessMeter};
use proptest::prelude::*;

use super::*;
use crate::config::DeviceKind;
use crate::vcpu::ExitCounters;
use crate::{ConsoleConfig, MemorySize, VmConfig};

devices::metrics! {
    struct Disk {
        read_bytes,
        write_bytes,
    }
}

fn registry() -> MetricsRegistry {
    let mut registry = MetricsRegistry::default();
    for bytes in [512, 1024] {
        let disk = Disk::default();
        disk.read_bytes.add(bytes);
        registry.add_device(DeviceKind::Block, Arc::new(disk));
    }
    registry.add_device(DeviceKind::Rng, Arc::new(Disk::default()));
    registry.add("vcpu", "0".into(), Arc::new(ExitCounters::default()));
    registry
}

fn report(registry: &MetricsRegistry) -> MetricsReport {
    MetricsReport { process: ProcessMeter::new().read(), counters: registry.counters() }
}

fn identity(name: Option<&str>) -> Identity {
    Identity {
        id: Some("0123456789ab".parse().unwrap()),
        name: name.map(|name| name.parse().unwrap()),
        directory: None,
    }
}

fn config() -> VmConfig {
    VmConfig {
        cpus: 2,
        memory: MemorySize::from_mib(64),
        console: ConsoleConfig::Off,
        ..VmConfig::new("vmlinux")
    }
}

#[test]
fn each_device_has_a_kind_and_an_id() {
    use DeviceKind::{Balloon, Block, Console, Fs, Net, Pmem, Rng, Vsock};
    let mut registry = MetricsRegistry::default();
    for kind in [Net, Block, Console, Rng, Balloon, Vsock, Fs, Pmem, Fs, Block] {
        registry.add_device(kind, Arc::new(Disk::default()));
    }
    let names: Vec<_> = registry.0.iter().map(|thing| (thing.kind, thing.id.as_str())).collect();
    let expected = [
        ("net", "net0"),
        ("block", "vda"),
        ("console", "hvc0"),
        ("rng", "rng0"),
        ("balloon", "balloon0"),
        ("vsock", "vsock0"),
        ("fs", "fs0"),
        ("pmem", "pmem0"),
        ("fs", "fs1"),
        ("block", "vdb"),
    ];
    assert_eq!(names, expected);
}

#[test]
fn counts_are_found_by_kind_and_id_and_summed() {
    let snapshot = report(&registry());
    assert_eq!(snapshot.counters["block"]["vda"]["read_bytes"], 512);
    assert_eq!(snapshot.counters["block"]["vdb"]["read_bytes"], 1024);
    assert_eq!(snapshot.counters["rng"]["rng0"]["write_bytes"], 0);
    assert_eq!((snapshot.sum("block", "read_bytes"), snapshot.total("block")), (1536, 1536));
    assert_eq!((snapshot.sum("block", "nothing"), snapshot.sum("nothing", "read_bytes")), (0, 0));
}

#[test]
fn a_snapshot_reads_back_as_written() {
    let snapshot = report(&registry());
    let json = serde_json::to_string(&snapshot).unwrap();
    assert_eq!(serde_json::from_str::<MetricsReport>(&json).unwrap(), snapshot);
}

/// A sample's name, its labels, and its value.
type Sample = (String, Vec<(String, String)>, f64);

/// Reads the text format as its description has it: each family has its HELP and TYPE once and before its samples,
/// which follow each other; names and labels have their alphabets, values are numbers.
fn read(page: &str) -> Result<Vec<Sample>, String> {
    let mut families = Vec::new();
    let mut samples = Vec::new();
    assert!(page.ends_with('\n'));
    let mut lines = page.lines().peekable();
    while let Some(line) = lines.next() {
        let (family, _help) = line
            .strip_prefix("# HELP ")
            .and_then(|rest| rest.split_once(' '))
            .ok_or(format!("no HELP: {line}"))?;
        let kind =
            lines.next().and_then(|line| line.strip_prefix(&format!("# TYPE {family} "))).ok_or("no TYPE")?;
        if families.contains(&family) || (kind == "counter") != family.ends_with("_total") {
            return Err(format!("{family} is wrong"));
        }
        families.push(family);
        while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
            let (rest, value) = line.rsplit_once(' ').ok_or("no value")?;
            let (name, labels) = rest.split_once('{').unwrap_or((rest, "}"));
            let name_is_good = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            if name != family || !name_is_good {
                return Err(format!("{name} among {family}"));
            }
            samples.push((name.to_owned(), read_labels(labels)?, value.parse().map_err(|_| "no number")?));
        }
    }
    Ok(samples)
}

fn read_labels(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut labels = Vec::new();
    let mut rest = text;
    while rest != "}" {
        let (name, value) = rest.split_once("=\"").ok_or(format!("no label: {rest}"))?;
        let mut content = String::new();
        let mut characters = value.char_indices();
        let end = loop {
            match characters.next().ok_or("no end")? {
                (at, '"') => break at,
                (_, '\\') => content.push(match characters.next().ok_or("no end")?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, '\n') => return Err("a line end".into()),
                (_, other) => content.push(other),
            }
        };
        labels.push((name.trim_start_matches(',').to_owned(), content));
        rest = &value[end + 1..];
    }
    Ok(labels)
}

#[test]
fn prometheus_reads_the_page() {
    let page = prometheus::page(&report(&registry()), &identity(Some("web")), &config(), true);
    let samples = read(&page).unwrap();
    let value = |name: &str, id: Option<&str>| {
        let label = id.map(|id| ("id".to_owned(), id.to_owned()));
        let found =
            samples.iter().find(|(sample, labels, _)| sample == name && labels.first() == label.as_ref());
        found.unwrap_or_else(|| panic!("no {name}:\n{page}")).2
    };
    assert_eq!(value("mvm_block_read_bytes_total", Some("vda")), 512.0);
    assert_eq!(value("mvm_block_read_bytes_total", Some("vdb")), 1024.0);
    assert_eq!(value("mvm_vcpu_halt_exits_total", Some("0")), 0.0);
    assert_eq!((value("mvm_paused", None), value("mvm_vcpus", None)), (1.0, 2.0));
    assert_eq!(value("mvm_memory_bytes", None), f64::from(64 << 20));
    assert!(
        value("process_cpu_seconds_total", None) > 0.0 && value("process_resident_memory_bytes", None) > 0.0
    );
    let info = samples.iter().find(|(name, ..)| name == "mvm_info").unwrap();
    assert!(info.1.contains(&("name".into(), "web".into())), "{info:?}");
}

/// By Prometheus's own tool, where it is installed.
#[test]
fn promtool_finds_nothing_to_say() {
    use std::process::{Command, Stdio};
    let page = prometheus::page(&report(&registry()), &identity(None), &config(), false);
    let tool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut tool) = tool else {
        eprintln!("skipped: there is no promtool (Debian package prometheus)");
        return;
    };
    std::io::Write::write_all(&mut tool.stdin.take().unwrap(), page.as_bytes()).unwrap();
    let output = tool.wait_with_output().unwrap();
    assert!(output.status.success(), "{}{page}", String::from_utf8_lossy(&output.stdout));
}

proptest! {
    #[test]
    fn whatever_a_thing_is_called_the_page_is_read(id: String) {
        let mut registry = MetricsRegistry::default();
        registry.add("block", id.clone(), Arc::new(Disk::default()));
        let page = prometheus::page(&report(&registry), &identity(None), &config(), false);
        let samples = read(&page).unwrap();
        let disk = samples.iter().find(|(name, ..)| name == "mvm_block_read_bytes_total").unwrap();
        prop_assert_eq!(&disk.1, &[("id".to_owned(), id)]);
    }
}
