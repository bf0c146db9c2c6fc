//! The OpenAPI document against what it describes.

use std::collections::BTreeSet;

use devices::virtio::balloon::Statistics;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::control::router::ROUTES;
use crate::control::{answers, drives};
use instance::api::{
    Action, ActionType, Balloon, BalloonStatistics, BalloonUpdate, Drive, DriveUpdate, Fault, InstanceInfo,
    MachineConfiguration, SnapshotCreate, SnapshotType, State, Version, VmUpdate, WantedState,
};
use instance::{MetricsReport, ProcessGauges};

fn document() -> Value {
    serde_json::from_str(OPENAPI).unwrap()
}

fn keys(value: &Value) -> BTreeSet<String> {
    value.as_object().unwrap_or_else(|| panic!("no object: {value}")).keys().cloned().collect()
}

#[test]
fn each_route_is_described_and_nothing_else() {
    let document = document();
    let mut described = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        let methods = methods.as_object().unwrap().keys().filter(|key| *key != "parameters");
        described.extend(methods.map(|method| (path.clone(), method.to_uppercase())));
    }
    let of_drives = drives::METHODS
        .iter()
        .map(|method| (format!("{}{{drive_id}}", drives::PREFIX), (*method).to_owned()));
    let routes = ROUTES.iter().flat_map(|route| {
        route.methods.iter().map(|(method, _)| (route.path.to_owned(), (*method).to_owned()))
    });
    assert_eq!(described, routes.chain(of_drives).collect());
}

#[test]
fn the_description_has_the_programs_version() {
    assert_eq!(document()["info"]["version"], env!("CARGO_PKG_VERSION"));
}

/// Everything in the document that has a schema by name, with its example.
fn examples() -> Vec<(String, Value)> {
    fn collect(value: &Value, found: &mut Vec<(String, Value)>) {
        if let (Some(schema), Some(example)) = (value["schema"]["$ref"].as_str(), value.get("example")) {
            found.push((schema.rsplit('/').next().unwrap().to_owned(), example.clone()));
        }
        match value {
            Value::Object(members) => members.values().for_each(|value| collect(value, found)),
            Value::Array(items) => items.iter().for_each(|value| collect(value, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    collect(&document()["paths"], &mut found);
    found
}

/// Reads `example` as a `T` and writes it again: nothing is lost, and nothing comes in addition.
fn survives<T: Serialize + DeserializeOwned>(example: &Value) -> bool {
    serde_json::from_value::<T>(example.clone()).is_ok_and(|read| json!(read) == *example)
}

#[test]
fn each_example_is_what_the_code_reads_and_writes() {
    let mut seen = BTreeSet::new();
    for (schema, example) in examples() {
        let good = match schema.as_str() {
            "InstanceInfo" => survives::<InstanceInfo>(&example),
            "Version" => survives::<Version>(&example),
            "VmUpdate" => survives::<VmUpdate>(&example),
            "MachineConfiguration" => survives::<MachineConfiguration>(&example),
            "Balloon" => survives::<Balloon>(&example),
            "BalloonUpdate" => survives::<BalloonUpdate>(&example),
            "BalloonStatistics" => survives::<BalloonStatistics>(&example),
            "Drive" => survives::<Drive>(&example),
            "DriveUpdate" => survives::<DriveUpdate>(&example),
            "Action" => survives::<Action>(&example),
            "SnapshotCreate" => survives::<SnapshotCreate>(&example),
            "Metrics" => survives::<MetricsReport>(&example),
            "Fault" => survives::<Fault>(&example),
            // The code only writes it; each member is there.
            "VmConfig" => keys(&example) == keys(&json!(answers::config(&vm(config()).0))),
            other => panic!("nothing reads {other}"),
        };
        assert!(good, "{schema}: {example}");
        seen.insert(schema);
    }
    let schemas = keys(&document()["components"]["schemas"]);
    // It is a part of the metrics.
    seen.insert("ProcessGauges".into());
    assert_eq!(seen, schemas);
}

/// A guest's memory statistics. All of them are optional.
fn all_statistics() -> Statistics {
    Statistics {
        swap_in: Some(0),
        swap_out: Some(0),
        major_faults: Some(0),
        minor_faults: Some(0),
        free_memory: Some(0),
        total_memory: Some(0),
        available_memory: Some(0),
        disk_caches: Some(0),
        hugetlb_allocations: Some(0),
        hugetlb_failures: Some(0),
        oom_kill: Some(0),
        alloc_stall: Some(0),
        async_scan: Some(0),
        direct_scan: Some(0),
        async_reclaim: Some(0),
        direct_reclaim: Some(0),
    }
}

fn drive() -> Drive {
    Drive { drive_id: "vda".into(), path_on_host: "disk".into(), is_read_only: true, size_bytes: 512 }
}

/// What the code writes with every field set.
fn written() -> Vec<(&'static str, Value)> {
    let (vm, ..) = vm(config());
    let balloon = vm.balloon().unwrap();
    vec![
        ("InstanceInfo", json!(answers::instance(&vm))),
        ("Version", json!(Version { mvm_version: String::new() })),
        ("VmUpdate", json!(VmUpdate { state: WantedState::Paused })),
        ("MachineConfiguration", json!(MachineConfiguration { vcpu_count: 1, mem_size_mib: 1 })),
        ("Balloon", json!(answers::balloon(balloon))),
        ("BalloonUpdate", json!(BalloonUpdate { amount_mib: 1 })),
        ("Drive", json!(drive())),
        (
            "SnapshotCreate",
            json!(SnapshotCreate {
                snapshot_path: Some(String::new()),
                mem_file_path: Some(String::new()),
                stays_paused: true,
                ..SnapshotCreate::default()
            }),
        ),
        ("DriveUpdate", json!(DriveUpdate { drive_id: String::new(), size_bytes: Some(512), shrink: true })),
        ("BalloonStatistics", json!(answers::balloon_statistics(balloon, all_statistics()))),
        ("Action", json!(Action { action_type: ActionType::Kill })),
        ("VmConfig", json!(answers::config(&vm))),
        ("ProcessGauges", json!(ProcessGauges::default())),
        ("Metrics", json!(vm.metrics())),
        ("Fault", json!(Fault { fault_message: String::new() })),
    ]
}

#[test]
fn each_schema_has_the_fields_that_the_code_writes() {
    let schemas = &document()["components"]["schemas"];
    let written = written();
    assert_eq!(keys(schemas), written.iter().map(|(name, _)| (*name).to_owned()).collect());
    for (name, value) in &written {
        let schema = &schemas[*name];
        assert_eq!(keys(&schema["properties"]), keys(value), "{name}");
        let required: BTreeSet<String> = serde_json::from_value(schema["required"].clone()).unwrap();
        let optional = match *name {
            "BalloonStatistics" => keys(&json!(all_statistics())),
            "DriveUpdate" => ["size_bytes", "shrink"].map(str::to_owned).into(),
            "SnapshotCreate" => keys(value),
            _ => BTreeSet::new(),
        };
        assert_eq!(required, &keys(value) - &optional, "{name}");
        for (field, value) in value.as_object().unwrap() {
            let kind = schema["properties"][field]["type"].as_str().unwrap_or("object");
            let fits = match value {
                Value::String(_) => kind == "string",
                Value::Number(_) => kind == "integer",
                Value::Array(_) => kind == "array",
                Value::Object(_) => kind == "object",
                Value::Bool(_) => kind == "boolean",
                _ => false,
            };
            assert!(fits, "{name}.{field} is {value}, described as {kind}");
        }
    }
}

#[test]
fn each_described_word_is_understood_and_no_other() {
    let schemas = &document()["components"]["schemas"];
    let words =
        |schema: &str, field: &str| schemas[schema]["properties"][field]["enum"].as_array().unwrap().clone();
    let all_understood = |words: &[Value], count, understood: fn(&Value) -> bool| {
        assert!(words.len() == count && words.iter().all(understood), "{words:?}");
    };
    all_understood(&words("VmUpdate", "state"), 2, survives::<WantedState>);
    all_understood(&words("InstanceInfo", "state"), 2, survives::<State>);
    all_understood(&words("Action", "action_type"), 2, survives::<ActionType>);
    all_understood(&words("SnapshotCreate", "snapshot_type"), 1, survives::<SnapshotType>);
}

/// Each request of the document, sent as it stands there, has an answer that stands there.
#[test]
fn each_example_request_is_answered_as_described() {
    let server = Server::start();
    for (path, methods) in document()["paths"].as_object().unwrap() {
        let parameter = &methods["parameters"][0]["example"];
        let path = path.replace("{drive_id}", parameter.as_str().unwrap_or_default());
        for (method, operation) in methods.as_object().unwrap().iter().filter(|(key, _)| *key != "parameters")
        {
            let body = &operation["requestBody"]["content"]["application/json"]["example"];
            let body = if body.is_null() { String::new() } else { body.to_string() };
            let (method, length) = (method.to_uppercase(), body.len());
            let request = format!(
                "{method} {path} HTTP/1.1\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            );
            let answer = server.exchange(request.as_bytes());
            let [status] = statuses(&answer)[..] else { panic!("{answer}") };
            let described = &operation["responses"][status.to_string()];
            // The text has no files, which it needs.
            let is_done =
                status < 300 || path == "/snapshot/create" && answer.contains("two open, empty files");
            assert!(is_done && described.is_object(), "{method} {path}: {answer}");
            let kinds = described["content"].as_object();
            for kind in kinds.into_iter().flat_map(serde_json::Map::keys) {
                assert!(answer.contains(&format!("Content-Type: {kind}")), "{answer}");
            }
        }
    }
}
