use super::*;

#[test]
fn the_table_fits_a_terminal() {
    let usage = |name: &str| Usage {
        id: "0123456789ab".into(),
        name: Some(name.into()),
        container: Some(ContainerUsage {
            cpu_percent: 6399.9,
            memory_bytes: 1023 << 30,
            memory_limit_bytes: 1023 << 30,
            pids: 4_194_304,
        }),
        cpu_percent: 6399.9,
        resident_bytes: 1023 << 30,
        shared_bytes: 1023 << 30,
        memory_bytes: 1023 << 30,
        disk_read_bytes: 1023 << 30,
        disk_write_bytes: 1023 << 30,
        net_receive_bytes: 1023 << 30,
        net_transmit_bytes: 1023 << 30,
        exits_per_second: 10_000_000,
        ..Usage::default()
    };
    let rows = [usage("web"), usage(&"n".repeat(63))];
    let widest = |width| table(&rows, width).lines().map(|line| line.chars().count()).max().unwrap();
    assert!((60..=80).contains(&widest(Some(80))), "{}", table(&rows, Some(80)));
    assert!((81..=120).contains(&widest(Some(120))), "{}", table(&rows, Some(120)));
    let (narrow, all) = (table(&rows, Some(80)), table(&rows, None));
    assert!(narrow.contains("MEM USAGE / LIMIT") && narrow.contains("1023.0GiB / 1023.0GiB"), "{narrow}");
    assert!(!narrow.contains("EXITS/s") && all.contains("EXITS/s"), "{narrow}");
}

#[test]
fn fields_are_dockers_and_an_agent_can_say_anything() {
    let usage = |cpu, at| container::Usage { cpu, at, memory: 3 << 20, cache: 1 << 20, pids: 2 };
    let half = of_agent(Some(usage(1_000_000, 5_000_000)), usage(1_500_000, 6_000_000), 8 << 20);
    let row = Usage {
        id: "0123456789ab".into(),
        container: Some(half),
        disk_read_bytes: 5 << 20,
        ..Usage::default()
    };
    let expected = json!({
        "Container": "0123456789ab", "ID": "0123456789ab", "Name": "0123456789ab", "CPUPerc": "50.0%",
        "MemUsage": "2.0MiB / 8.0MiB", "MemPerc": "25.0%", "NetIO": "0B / 0B", "BlockIO": "5.0MiB / 0B", "PIDs": "2",
    });
    assert_eq!(row.fields(), expected);
    let all = |value| container::Usage { cpu: value, at: value, memory: value, cache: value, pids: value };
    for (before, now) in [(0, u64::MAX), (u64::MAX, 0), (7, 7)] {
        let usage = of_agent(Some(all(before)), all(now), 0);
        assert!((0.0..=100.0).contains(&usage.cpu_percent) && usage.memory_bytes == 0);
    }
    let silent = Usage { silent: true, container: None, resident_bytes: 90 << 20, ..row };
    assert_eq!(silent.fields()["MemUsage"], "-- / --");
    assert_eq!(
        (&silent.fields()["PIDs"], &silent.fields()["BlockIO"]),
        (&json!("--"), &json!("5.0MiB / 0B"))
    );
    let ended = Usage { ended: true, ..silent };
    assert_eq!(ended.fields()["BlockIO"], "-- / --");
}

#[test]
fn rates_are_those_of_the_time_that_passed() {
    assert_eq!(per_second(10, 2_000_000_000), 5);
    assert_eq!(per_second(0, 1), 0);
    assert_eq!(per_second(u64::MAX, 1), u64::MAX);
}
