use std::io::Read;
use std::os::unix::net::UnixListener;
use std::thread;

use rstest::rstest;
use serde_json::json;

use super::*;

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

fn check(options: &HealthOptions) -> HealthCheck {
    HealthCheck::new(None, options).unwrap()
}

#[rstest]
#[case(&["CMD", "a", "b"], Some(&["a", "b"][..]))]
#[case(&["CMD-SHELL", "a b"], Some(&["/bin/sh", "-c", "a b"][..]))]
#[case(&["NONE"], None)]
#[case(&["CMD"], None)]
#[case(&["x", "y"], None)]
#[case(&[], None)]
fn an_image_names_a_command_or_none(#[case] test: &[&str], #[case] command: Option<&[&str]>) {
    let image = ImageHealth { test: words(test), ..ImageHealth::default() };
    let made = HealthCheck::new(Some(&image), &HealthOptions::default());
    assert_eq!(made.map(|check| check.command), command.map(words));
    let off = HealthOptions { is_off: true, ..HealthOptions::default() };
    assert_eq!(HealthCheck::new(Some(&image), &off), None);
}

#[test]
fn the_users_times_win_over_the_images_and_these_over_dockers() {
    let image: ImageHealth = serde_json::from_value(json!({
        "Test": ["CMD", "x"], "Interval": 7_000_000_000_u64, "Retries": 9, "Later": 1
    }))
    .unwrap();
    let options = HealthOptions { timeout: Some(Duration::from_millis(1500)), ..HealthOptions::default() };
    let check = HealthCheck::new(Some(&image), &options).unwrap();
    assert_eq!((check.interval, check.timeout), (Duration::from_secs(7), Duration::from_millis(1500)));
    assert_eq!((check.start_period, check.start_interval), (Duration::ZERO, Duration::from_secs(5)));
    assert_eq!((check.retries, check.shown().test), (9, words(&["CMD", "x"])));
}

#[test]
fn an_images_times_are_no_shorter_than_dockers_shortest() {
    let image: ImageHealth = serde_json::from_value(json!({
        "Test": ["CMD", "x"], "Interval": 1, "Timeout": 999_999, "StartPeriod": 1, "StartInterval": 1
    }))
    .unwrap();
    let check = HealthCheck::new(Some(&image), &HealthOptions::default()).unwrap();
    assert_eq!([check.interval, check.timeout, check.start_period, check.start_interval], [SHORTEST; 4]);
}

#[test]
fn failures_count_in_a_row_and_not_while_it_starts() {
    let options = HealthOptions {
        command: Some("x".into()),
        retries: Some(2),
        start_period: Some(Duration::from_secs(10)),
        ..HealthOptions::default()
    };
    let check = check(&options);
    let mut health = Health::default();
    let mut take = |exit_code, age| {
        let result =
            HealthResult { start: String::new(), end: String::new(), exit_code, output: String::new() };
        health.take(result, &check, Duration::from_secs(age));
        (health.status, health.failing_streak, health.log.len())
    };
    assert_eq!(take(1, 1), (HealthStatus::Starting, 0, 1));
    assert_eq!(take(1, 10), (HealthStatus::Starting, 1, 2));
    assert_eq!(take(-1, 11), (HealthStatus::Unhealthy, 2, 3));
    assert_eq!(take(0, 12), (HealthStatus::Healthy, 0, 4));
    assert_eq!(take(1, 13), (HealthStatus::Healthy, 1, 5));
    assert_eq!(take(1, 14), (HealthStatus::Unhealthy, 2, 5));
}

/// An agent whose check ends at once, while what it has started keeps the output open.
#[test]
fn a_check_leaves_no_connection_behind() {
    use agent_protocol::{Decoder, Exit, VERSION, encode};
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join(VSOCK)).unwrap();
    let serve = |mut socket: UnixStream| {
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut line = [0; "CONNECT 1000\n".len()];
        socket.read_exact(&mut line).unwrap();
        socket.write_all(b"OK 1\n").unwrap();
        socket.write_all(&encode(&Reply::Hello { version: VERSION }).unwrap()).unwrap();
        let mut decoder = Decoder::default();
        let request = loop {
            let mut bytes = vec![0; decoder.wants().unwrap()];
            socket.read_exact(&mut bytes).unwrap();
            decoder.push(&bytes);
            if let Some(request) = decoder.take::<Request>().unwrap() {
                break request;
            }
        };
        let replies = match request {
            Request::Exec { .. } => {
                vec![Reply::Started, Reply::Exited(Exit { code: 3, out_of_memory: false })]
            }
            Request::Attach { .. } => vec![Reply::Attached { position: 0 }],
            other => panic!("{other:?}"),
        };
        let is_stream = matches!(&replies[..], [Reply::Attached { .. }]);
        for reply in replies {
            socket.write_all(&encode(&reply).unwrap()).unwrap();
        }
        if is_stream {
            socket.write_all(b"\x02\0\0\0hi").unwrap();
        }
        // The host's end, or an error after the time of waiting for it.
        socket.read(&mut [0]).unwrap()
    };
    let agent = thread::spawn(move || {
        let accept = |_| {
            let (socket, _) = listener.accept().unwrap();
            thread::spawn(move || serve(socket))
        };
        // Each is served at once: the next one comes after its answer.
        let threads: Vec<_> = (0..3).map(accept).collect();
        let ends: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        listener.set_nonblocking(true).unwrap();
        (ends, listener.accept().is_err())
    });
    let result = probe(&words(&["x"]), Duration::from_secs(60), directory.path(), "c").unwrap();
    assert_eq!(result, (Some(3), "hihi".into()));
    assert_eq!(agent.join().unwrap(), (vec![0, 0, 0], true));
}

#[test]
fn what_a_check_writes_is_bounded() {
    let mut beginning = Beginning::default();
    for _ in 0..100 {
        assert_eq!(beginning.write(&[b'x'; 1000]).unwrap(), 1000);
    }
    assert_eq!(beginning.0.lock().unwrap().len(), MAX_OUTPUT);
}

#[test]
fn lines_are_run_by_the_images_shell() {
    let image = |test: &[&str]| ImageHealth {
        test: words(test),
        shell: words(&["/bin/bash", "-ec"]),
        ..ImageHealth::default()
    };
    let command = |image: &ImageHealth, options: &HealthOptions| {
        HealthCheck::new(Some(image), options).map(|check| check.command)
    };
    let none = HealthOptions::default();
    let line = Some(words(&["/bin/bash", "-ec", "a b"]));
    assert_eq!(command(&image(&["CMD-SHELL", "a b"]), &none), line);
    assert_eq!(command(&image(&["CMD", "a", "b"]), &none), Some(words(&["a", "b"])));
    // The user's line too, where the image has a shell and no check.
    let own = HealthOptions { command: Some("a b".into()), ..none.clone() };
    assert_eq!(command(&image(&[]), &own), line);
    assert_eq!(command(&image(&[]), &none), None);
}

/// A VM whose guest hangs: its devices take connections, and nothing answers.
#[test]
fn a_guest_that_does_not_answer_fails_its_check_unless_it_is_paused() {
    let directory = tempfile::tempdir().unwrap();
    let _guest = UnixListener::bind(directory.path().join(VSOCK)).unwrap();
    let options = HealthOptions {
        command: Some("x".into()),
        timeout: Some(Duration::from_millis(50)),
        ..HealthOptions::default()
    };
    let check = check(&options);
    let start = Instant::now();
    let result = perform(&check, directory.path(), "c").unwrap();
    assert_eq!(result.exit_code, -1);
    assert!(result.output.starts_with("Health check exceeded timeout (50ms): "), "{}", result.output);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    // It is paused, and then while it is checked.
    let vm = UnixListener::bind(directory.path().join(CONTROL_SOCKET)).unwrap();
    let vm = thread::spawn(move || {
        for state in [State::Paused, State::Running, State::Paused] {
            let (mut socket, _) = vm.accept().unwrap();
            assert_ne!(socket.read(&mut [0; 1024]).unwrap(), 0);
            let info = InstanceInfo {
                app_name: "mvm".into(),
                id: "c".into(),
                name: None,
                state,
                vmm_version: "1".into(),
            };
            let body = serde_json::to_string(&info).unwrap();
            write!(socket, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        }
    });
    assert_eq!(perform(&check, directory.path(), "c"), None);
    assert_eq!(perform(&check, directory.path(), "c"), None);
    vm.join().unwrap();
    // Of one that has ended nothing is said.
    let ended = tempfile::tempdir().unwrap();
    assert_eq!(perform(&check, ended.path(), "c"), None);
}
