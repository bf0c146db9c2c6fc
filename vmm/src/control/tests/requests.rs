//! What clients ask in good faith.

use std::io::BufRead;

use rstest::rstest;

use super::*;
use crate::exit::ExitReason;
use instance::api::{Action, ActionType, InstanceInfo, MachineConfiguration, State, VmUpdate, WantedState};

#[test]
fn a_vm_says_who_it_is() {
    let server = Server::start();
    let mut client = server.client();
    let info: InstanceInfo = client.get("/").unwrap();
    assert_eq!((info.app_name.as_str(), info.id.as_str()), ("mvm", "0123456789ab"));
    assert_eq!((info.name.as_deref(), info.state), (Some("web"), State::Running));
    let machine: MachineConfiguration = client.get("/machine-config").unwrap();
    assert_eq!((machine.vcpu_count, machine.mem_size_mib), (3, 256));
    let metrics: instance::MetricsReport = client.get("/metrics.json").unwrap();
    assert_eq!(metrics.counters["vcpu"]["0"]["halt_exits"], 0);
}

#[test]
fn a_vm_is_paused_and_resumed() {
    let server = Server::start();
    let mut client = server.client();
    for (wanted, expected) in [(WantedState::Paused, State::Paused), (WantedState::Resumed, State::Running)] {
        // Twice has the same effect.
        for _ in 0..2 {
            client.send("PATCH", "/vm", &VmUpdate { state: wanted }).unwrap();
            assert_eq!(client.get::<InstanceInfo>("/").unwrap().state, expected);
            assert_eq!(server.vm.is_paused(), expected == State::Paused);
        }
    }
}

#[test]
fn the_power_button_is_pressed_and_the_vm_killed() {
    let server = Server::start();
    let mut client = server.client();
    let mut act = |action_type| client.send("PUT", "/actions", &Action { action_type }).unwrap();
    act(ActionType::SendCtrlAltDel);
    assert_eq!((server.presses.load(Ordering::SeqCst), server.exit.reason()), (1, None));
    act(ActionType::Kill);
    assert_eq!(server.exit.reason(), Some(ExitReason::Signal(libc::SIGKILL)));
}

#[rstest]
#[case("GET /nothing HTTP/1.1", 404, "no such resource")]
#[case("GET /vm/ HTTP/1.1", 404, "no such resource")]
#[case("GET //version HTTP/1.1", 404, "no such resource")]
#[case("GET /../version HTTP/1.1", 404, "no such resource")]
#[case("DELETE / HTTP/1.1", 405, "Allow: GET")]
#[case("get / HTTP/1.1", 405, "supports GET")]
#[case("GET /?pretty HTTP/1.1", 200, "0123456789ab")]
#[case("PATCH /vm HTTP/1.1", 400, "the request has no body")]
#[case("GET / HTTP/1.1\r\nTransfer-Encoding: chunked", 411, "Content-Length")]
#[case("GET / HTTP/1.1\r\nContent-Length: 65537", 413, "64 KiB")]
#[case("GET / HTTP/1.1\r\nContent-Length: 99999999999999999999999", 413, "64 KiB")]
#[case("GET / HTTP/1.1\r\nContent-Length: -1", 400, "not a number")]
#[case("GET / HTTP/1.1\r\nContent-Length: +1", 400, "not a number")]
#[case("GET / HTTP/1.1\r\nContent-Length:", 400, "not a number")]
#[case("GET / HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: 1", 400, "two lengths")]
#[case("GET / HTTP/1.1\r\nExpect: miracles", 417, "100-continue")]
#[case("GET / HTTP/2.0", 505, "HTTP/1.1")]
#[case("hello", 400, "invalid HTTP request")]
fn each_mistake_has_its_status(#[case] head: &str, #[case] status: u16, #[case] said: &str) {
    let server = Server::start();
    let answer = server.exchange(format!("{head}\r\n\r\n").as_bytes());
    assert_eq!(statuses(&answer), [status], "{answer}");
    assert!(answer.contains(said), "{answer}");
    if status >= 400 {
        let body = answer.split("\r\n\r\n").nth(1).unwrap();
        serde_json::from_str::<api::Fault>(body).unwrap();
    }
}

#[rstest]
#[case("{}")]
#[case("{\"state\":\"Gone\"}")]
#[case("{\"state\":\"Paused\",\"more\":1}")]
#[case("[]")]
#[case("{\"state\":\"Paused\"} x")]
#[case("\u{0}")]
fn a_body_that_is_something_else_changes_nothing(#[case] body: &str) {
    let server = Server::start();
    let request = format!("PATCH /vm HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let answer = server.exchange(request.as_bytes());
    assert_eq!(statuses(&answer), [400], "{answer}");
    assert!(!server.vm.is_paused());
}

#[test]
fn requests_that_follow_each_other_at_once_are_answered_in_order() {
    let server = Server::start();
    let pause = "PATCH /vm HTTP/1.1\r\nContent-Length: 18\r\n\r\n{\"state\":\"Paused\"}";
    let resume = "PATCH /vm HTTP/1.1\r\nContent-Length: 19\r\n\r\n{\"state\":\"Resumed\"}";
    let get = "GET / HTTP/1.1\r\n\r\n";
    let answer = server.exchange([pause, get, resume, get, "GET /x HTTP/1.1\r\n\r\n"].concat().as_bytes());
    assert_eq!(statuses(&answer), [204, 200, 204, 200, 404], "{answer}");
    let (paused, running) = (answer.find("\"Paused\"").unwrap(), answer.find("\"Running\"").unwrap());
    assert!(paused < running);
}

#[test]
fn a_request_may_come_byte_by_byte() {
    let server = Server::start();
    let mut stream = server.connect();
    for byte in b"PUT /actions HTTP/1.1\r\nContent-Length: 32\r\n\r\n{\"action_type\":\"SendCtrlAltDel\"}" {
        stream.write_all(&[*byte]).unwrap();
    }
    let mut line = String::new();
    std::io::BufReader::new(stream).read_line(&mut line).unwrap();
    assert_eq!(line, "HTTP/1.1 204 No Content\r\n");
    assert_eq!(server.presses.load(Ordering::SeqCst), 1);
}

#[test]
fn a_client_that_waits_for_a_word_gets_it_once() {
    let server = Server::start();
    let mut stream = server.connect();
    stream.write_all(b"PATCH /vm HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 18\r\n\r\n").unwrap();
    let mut reader = std::io::BufReader::new(stream.try_clone().unwrap());
    let mut line = || {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        line
    };
    assert_eq!((line(), line()), ("HTTP/1.1 100 Continue\r\n".into(), "\r\n".into()));
    for byte in b"{\"state\":\"Paused\"}" {
        stream.write_all(&[*byte]).unwrap();
    }
    assert_eq!(line(), "HTTP/1.1 204 No Content\r\n");
}

#[test]
fn a_client_of_http_1_0_gets_no_word_before_the_answer_and_is_told_that_the_connection_stays() {
    let server = Server::start();
    let head =
        "PATCH /vm HTTP/1.0\r\nConnection: keep-alive\r\nExpect: 100-continue\r\nContent-Length: 18\r\n\r\n";
    let mut stream = server.connect();
    stream.write_all(head.as_bytes()).unwrap();
    // It has been read alone by the time that another client is answered.
    server.exchange(b"GET / HTTP/1.1\r\n\r\n");
    stream.write_all(b"{\"state\":\"Paused\"}").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(statuses(&answer), [204], "{answer}");
    assert!(answer.contains("\r\nConnection: keep-alive\r\n"), "{answer}");
}

#[rstest]
#[case("/", 200)]
#[case("/metrics", 200)]
#[case("http://localhost/version", 200)]
#[case("/missing", 404)]
#[case("/actions", 405)]
fn head_is_answered_as_get_without_a_body(#[case] target: &str, #[case] status: u16) {
    let server = Server::start();
    let head = server.exchange(format!("HEAD {target} HTTP/1.1\r\n\r\n").as_bytes());
    let get = server.exchange(format!("GET {target} HTTP/1.1\r\n\r\n").as_bytes());
    assert_eq!(statuses(&head), [status], "{head}");
    assert_eq!(statuses(&get), [status], "{get}");
    assert!(head.ends_with("\r\n\r\n") && !head.contains("Content-Length: 0"), "{head}");
    let (fields, body) = get.split_once("\r\n\r\n").unwrap();
    assert!(!body.is_empty());
    if target != "/metrics" {
        // That counts the process's own processor time.
        assert_eq!(head.trim_end(), fields);
    }
}

#[rstest]
#[case("GET / HTTP/1.1\r\nConnection: close\r\n\r\n", 1)]
#[case("GET / HTTP/1.0\r\n\r\n", 1)]
#[case("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", 2)]
#[case("GET / HTTP/1.1\r\nConnection: upgrade, Close\r\n\r\n", 1)]
#[case("GET / HTTP/1.1\r\n\r\n", 2)]
fn a_connection_is_kept_unless_it_is_asked_not_to_be(#[case] request: &str, #[case] answers: usize) {
    let server = Server::start();
    let answer = server.exchange(format!("{request}{request}").as_bytes());
    assert_eq!(statuses(&answer).len(), answers, "{answer}");
}

#[test]
fn the_socket_is_for_its_user_alone() {
    use std::os::unix::fs::PermissionsExt;
    let server = Server::start();
    assert_eq!(std::fs::metadata(&server.path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_socket_that_cannot_be_made_is_said() {
    let path = PathBuf::from("/missing/control.sock");
    let Err(error) = ControlServer::listen(&path) else { panic!("it was made") };
    assert!(error.to_string().contains("/missing/control.sock"), "{error}");
}
