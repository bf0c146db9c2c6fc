//! Ports and networks of containers.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::containers::{IMAGE, run, stores, text};
use super::passt::Uplink;
use tests::HostLink;

/// A container that serves its name by HTTP on port 80.
struct Server(Child);

impl Server {
    fn start(options: &[&str]) -> Self {
        let script = "echo served >/tmp/index.html; echo ready; exec httpd -f -p 80 -h /tmp";
        let mut command = stores().mvm();
        command.arg("run").args(options).args([IMAGE, "sh", "-c", script]).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "{options:?}");
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // httpd handles no signal, and as PID 1 it is not killed by it either.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What is answered at `address`, which is asked until it answers.
pub(super) fn ask(address: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        // passt accepts before the container listens, and closes then.
        let mut answer = String::new();
        if let Ok(mut stream) = TcpStream::connect(address) {
            let _ = stream.write_all(b"GET / HTTP/1.0\r\n\r\n");
            let _ = stream.read_to_string(&mut answer);
        }
        if !answer.is_empty() || Instant::now() > deadline {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The ports on which something listens here (proc(5), `/proc/net/tcp`).
fn listening() -> BTreeSet<u16> {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let port = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, _, state) = (fields.next()?, fields.next()?, fields.next()?);
        let port = local.rsplit_once(':').filter(|_| state == "0A")?.1;
        u16::from_str_radix(port, 16).ok()
    };
    table.lines().filter_map(port).collect()
}

#[test]
fn free_ports_of_the_host_are_published() {
    let Some(_uplink) = Uplink::new(false) else { return };
    let _holder = TcpListener::bind("127.0.0.1:18100").unwrap();
    let server = Server::start(&["-p", "127.0.0.1:18100-18105:80"]);
    assert!(ask("127.0.0.1:18101").contains("served"));
    drop(server);
    let before = listening();
    let _server = Server::start(&["-P", "--expose", "80"]);
    let new: Vec<u16> = listening().difference(&before).copied().collect();
    assert_eq!(new.len(), 1, "{new:?}");
    assert!(ask(&format!("127.0.0.1:{}", new[0])).contains("served"));
}

#[test]
fn the_host_is_reached_by_its_gateway() {
    let Some(_uplink) = Uplink::new(false) else { return };
    let listener = TcpListener::bind("127.0.0.1:18110").unwrap();
    let served = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nfrom the host").unwrap();
    });
    let output = run(&[
        "--add-host",
        "up:host-gateway",
        "--domainname",
        "lan",
        "-h",
        "box",
        IMAGE,
        "sh",
        "-c",
        "wget -qO- http://up:18110/; echo; grep box /etc/hosts; cat /proc/sys/kernel/domainname",
    ]);
    assert_eq!(
        text(&output.stdout),
        "from the host\n10.88.0.2\tbox.lan box\nlan\n",
        "{}",
        text(&output.stderr)
    );
    served.join().unwrap();
}

#[test]
fn a_container_is_on_a_tap_with_its_address() {
    let _tap = HostLink::tap("mvmrun", "", "10.9.8.1");
    let network = "tap=mvmrun,ip=10.9.8.2/24,gateway=10.9.8.1";
    let _server = Server::start(&["--network", network, "--mac-address", "02:00:00:00:00:09"]);
    assert!(ask("10.9.8.2:80").contains("served"));
    drop(_server);
    let output = run(&[
        "--network",
        network,
        "--mac-address",
        "02:00:00:00:00:09",
        IMAGE,
        "sh",
        "-c",
        "cat /sys/class/net/eth0/address; ip route | grep -c 'default via 10.9.8.1'",
    ]);
    assert_eq!(text(&output.stdout), "02:00:00:00:00:09\n1\n", "{}", text(&output.stderr));
}
