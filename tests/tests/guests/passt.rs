//! Networks without root: passt leads a guest to the world, and the host's ports to the guest.

#![allow(clippy::indexing_slicing, reason = "a panic is a failed test")]

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tests::{Boot, Guest, Outcome, udp_program};

use super::containers::{IMAGE, stores};

/// Longer than anything here takes, and shorter than the tests' own watchdog.
const DEADLINE: Duration = Duration::from_secs(60);

/// What a guest does to have its addresses.
const DHCP: &str = "udhcpc -i eth0 -n -q >/dev/null";

fn host(script: &str) -> String {
    let output = Command::new("sh").args(["-e", "-c", script]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(output.status.success(), "{script}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// A network of the host, with a router that is not there, and services elsewhere, which are on this host in truth: not
/// on the network's own device, as passt may give any address of that to the guest.
/// In the lab alone: it becomes where all packets go.
pub struct Uplink;

impl Uplink {
    /// `None`, with the reason printed, outside of the lab.
    pub fn new(has_ipv6: bool) -> Option<Self> {
        if std::env::var_os("MVM_KVM_LAB").is_none() {
            eprintln!("skipped: the network of this host stays as it is");
            return None;
        }
        host("ip link add mvmup type dummy");
        let uplink = Self;
        host(
            "ip link set mvmup up; ip addr add 198.51.100.2/24 dev mvmup; ip addr add 203.0.113.5/32 dev lo
            ip route add default via 198.51.100.1 dev mvmup",
        );
        if has_ipv6 {
            host(
                "ip addr add 2001:db8:77::2/64 dev mvmup nodad; ip addr add 2001:db8:99::5/128 dev lo nodad
                ip -6 route add default via 2001:db8:77::1 dev mvmup",
            );
        }
        Some(uplink)
    }
}

impl Drop for Uplink {
    fn drop(&mut self) {
        for arguments in
            ["link del mvmup", "addr del 203.0.113.5/32 dev lo", "addr del 2001:db8:99::5/128 dev lo"]
        {
            let _ = Command::new("ip").args(arguments.split(' ')).output();
        }
    }
}

/// Answers one request of HTTP at `address` with `words`, and returns the path of the request. A length is given and
/// heeded: the passt of Debian 12 may lose the end of a connection that one side has ended before the other.
pub fn serve(address: &str, words: &'static str) -> JoinHandle<String> {
    let listener = TcpListener::bind(address).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let head = read_until(&mut stream, "\r\n\r\n");
        write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{words}", words.len()).unwrap();
        head.split(' ').nth(1).unwrap().to_owned()
    })
}

/// Asks the server at `address`, which answers with `words` at the end.
pub fn ask(address: &str, words: &str) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"GET /word HTTP/1.0\r\n\r\n").unwrap();
    read_until(&mut stream, words);
}

fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        let mut buffer = [0; 1024];
        let length = stream.read(&mut buffer).unwrap();
        assert!(length > 0, "no {end:?} in {text:?}");
        text += std::str::from_utf8(&buffer[..length]).unwrap();
    }
    text
}

/// The passt of a VM.
fn passt_of(guest: &Guest) -> Pid {
    let pid = guest.vm_pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let passts: Vec<_> = children
        .split_whitespace()
        .filter(|child| fs::read_to_string(format!("/proc/{child}/comm")).unwrap().starts_with("passt"))
        .collect();
    assert_eq!(passts.len(), 1, "the helpers of mvm are {children}");
    Pid::from_raw(passts.first().unwrap().parse().unwrap()).unwrap()
}

fn wait_until_gone(pid: Pid) {
    let deadline = Instant::now() + DEADLINE;
    while Path::new(&format!("/proc/{pid}")).exists() {
        assert!(Instant::now() < deadline, "passt is left");
        std::thread::yield_now();
    }
}

fn finish(mut guest: Guest) -> Outcome {
    guest.close_input();
    guest.finish().expect_code(0)
}

#[test]
fn a_guest_has_its_addresses_and_reaches_the_world_and_its_host() {
    let Some(_uplink) = Uplink::new(true) else { return };
    let world = serve("203.0.113.5:7001", "from the world\n");
    let world6 = serve("[2001:db8:99::5]:7002", "from the world of six\n");
    let here = serve("127.0.0.1:7003", "from the host\n");
    let script = format!(
        "{DHCP}; echo mtu=$(cat /sys/class/net/eth0/mtu)
        ip -4 addr show eth0 | grep -o 'inet [^ ]*'; ip route | grep -o 'default via [^ ]*'; cat /etc/resolv.conf
        wget -qO- http://203.0.113.5:7001/world
        wget -qO- http://198.51.100.1:7003/host
        until ip -6 addr show eth0 scope global | grep -q inet6 && ip -6 route | grep -q default; do usleep 10000; done
        until ! ip -6 addr show eth0 | grep -q tentative; do usleep 10000; done
        ip -6 addr show eth0 scope global | grep -o 'inet6 2001:db8:77:[^ ]*' | head -n 1
        wget -qO- http://[2001:db8:99::5]:7002/six"
    );
    let outcome = Boot::new().flag("--net", "user").script(&script).run().expect_code(0);
    let outcome = outcome.expect_line("inet 198.51.100.2/24").expect_line("default via 198.51.100.1");
    let outcome = outcome.expect("inet6 2001:db8:77:").expect("nameserver ").expect_line("from the world");
    let outcome = outcome.expect_line("from the host").expect_line("from the world of six");
    assert_eq!(outcome.number("mtu"), 65520);
    assert_eq!(world.join().unwrap(), "/world");
    assert_eq!(here.join().unwrap(), "/host");
    assert_eq!(world6.join().unwrap(), "/six");
    // All is well, so that there is nothing to say.
    assert!(outcome.errors.is_empty(), "{outcome}");
}

#[test]
fn published_ports_lead_to_the_guest() {
    let Some(_uplink) = Uplink::new(true) else { return };
    let directory = TempDir::new().unwrap();
    let mut program = fs::read(udp_program()).unwrap();
    program.resize(program.len().next_multiple_of(512), 0);
    let disk = directory.path().join("udp");
    fs::write(&disk, program).unwrap();
    let script = format!(
        "for d in /sys/block/vd*; do [ \"$(cat $d/serial)\" = udp ] && cat /dev/${{d##*/}} >/tmp/udp; done
        chmod +x /tmp/udp; {DHCP}
        mkdir /tmp/80 /tmp/91; echo from the guest >/tmp/80/word; echo second >/tmp/91/word
        httpd -p 80 -h /tmp/80; httpd -p 91 -h /tmp/91; /tmp/udp 53 &
        echo listening; read answer"
    );
    let boot = Boot::new()
        .flag("--publish", "127.0.0.1:8080:80")
        .flag("-p", "5353:53/udp")
        .flag("-p", "8090-8091:90-91")
        .flag("--disk", format!("{},readonly,id=udp", disk.display()));
    let mut guest = boot.script(&script).start();
    guest.wait_for("udp: ready");
    guest.wait_for("listening");
    ask("127.0.0.1:8080", "from the guest\n");
    // On one address only.
    assert!(TcpStream::connect("203.0.113.5:8080").is_err());
    // The other of a range, by another address.
    ask("203.0.113.5:8091", "second\n");
    // Datagrams may get lost, on principle.
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect("127.0.0.1:5353").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut answer = [0; 64];
    let deadline = Instant::now() + DEADLINE;
    let length = loop {
        assert!(Instant::now() < deadline, "no datagram comes back");
        socket.send(b"a question").unwrap();
        if let Ok(length) = socket.recv(&mut answer) {
            break length;
        }
    };
    assert_eq!(&answer[..length], b"the guest has a question");
    guest.type_text("go on\n");
    finish(guest);
    // The ports are free again.
    drop(TcpListener::bind("127.0.0.1:8080").unwrap());
}

/// Answers each question for an address of IPv4 with 192.0.2.77, forever.
#[allow(clippy::indexing_slicing, reason = "a panic is a failed test")]
fn resolver(address: &str) {
    let socket = UdpSocket::bind(address).unwrap();
    std::thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((length, peer)) = socket.recv_from(&mut question) {
            // The name, which ends with a zero, its type and its class, are behind a header of 12 bytes.
            let name = question[12..length].iter().position(|byte| *byte == 0).unwrap() + 1;
            let end = 12 + name + 4;
            let is_for_ipv4 = question[12 + name..12 + name + 2] == [0, 1];
            let mut answer = question[..end].to_vec();
            answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(is_for_ipv4), 0, 0, 0, 0]);
            if is_for_ipv4 {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 77]);
            }
            socket.send_to(&answer, peer).unwrap();
        }
    });
}

/// As with systemd's resolver: what /etc/resolv.conf names is on the host's loopback. And there is no IPv6.
#[test]
fn names_are_resolved_by_a_resolver_on_the_hosts_loopback() {
    let Some(_uplink) = Uplink::new(false) else { return };
    resolver("127.0.0.53:53");
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("resolv.conf");
    fs::write(&file, "nameserver 127.0.0.53\nsearch example.net\n").unwrap();
    fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
    let seen = |command: &Command| {
        let mut inside = Command::new("unshare");
        inside.args(["--mount", "sh", "-c", "mount --bind $0 /etc/resolv.conf && exec \"$@\""]).arg(&file);
        inside.arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
        inside.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let output = inside.output().unwrap();
        let console = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{console}\n{errors}");
        console
    };
    let look = "cat /etc/resolv.conf; nslookup -type=a www.example.com; echo resolved=$?";
    let (command, _boot) = Boot::new().flag("--net", "user").script(&format!("{DHCP}; {look}")).command();
    let console = seen(&command);
    assert!(console.contains("nameserver 198.51.100.1") && console.contains("192.0.2.77"), "{console}");
    assert!(console.contains("resolved=0"), "{console}");
    // A container has an address of its own for it, and the link's own address is all it has of IPv6.
    let mut command = stores().mvm();
    let look = format!("{look}; ip -6 -o addr show scope global | wc -l; ip -6 route show default | wc -l");
    command.args(["run", "--rm", IMAGE, "sh", "-c", &look]);
    let console = seen(&command);
    assert!(console.starts_with("nameserver 10.88.0.3\n") && console.contains("192.0.2.77"), "{console}");
    assert!(console.ends_with("resolved=0\n0\n0\n"), "{console}");
}

#[test]
fn with_no_host_the_hosts_loopback_is_out_of_reach() {
    let Some(_uplink) = Uplink::new(false) else { return };
    let listener = TcpListener::bind("127.0.0.1:7004").unwrap();
    listener.set_nonblocking(true).unwrap();
    let world = serve("203.0.113.5:7005", "from the world\n");
    let script = format!(
        "{DHCP}; echo hello | nc -w 5 198.51.100.1 7004 || echo refused
        # Packets for the loopback go out, as no honest host has them.
        ip route del local 127.0.0.0/8 table local; ip addr flush dev lo
        echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet; ip route add 127.0.0.0/8 via 198.51.100.1
        sent=$(cat /sys/class/net/eth0/statistics/tx_packets)
        echo hello | nc -w 5 127.0.0.1 7004 || echo lost
        [ $(cat /sys/class/net/eth0/statistics/tx_packets) -gt $sent ] && echo went out
        wget -qO- http://203.0.113.5:7005/world"
    );
    let outcome = Boot::new().flag("--net", "user,no-host,mtu=1400").script(&script).run().expect_code(0);
    outcome.expect_line("refused").expect_line("lost").expect_line("went out").expect_line("from the world");
    assert_eq!(world.join().unwrap(), "/world");
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn passt_outlives_the_signals_that_end_a_service_and_a_guest_outlives_passt() {
    let Some(_uplink) = Uplink::new(false) else { return };
    let script = format!(
        "{DHCP}; echo before=$(cat /sys/class/net/eth0/carrier); echo ready; read answer
        {DHCP}; echo signalled=$(cat /sys/class/net/eth0/carrier); echo renewed; read answer
        while [ $(cat /sys/class/net/eth0/carrier) = 1 ]; do usleep 10000; done
        echo after=$(cat /sys/class/net/eth0/carrier)"
    );
    let mut guest = Boot::new().flag("--net", "user").script(&script).start();
    guest.wait_for("ready");
    let passt = passt_of(&guest);
    // systemd sends them to all processes of a service, and the guest needs its network to shut down.
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        kill_process(passt, signal).unwrap();
    }
    guest.type_text("go on\n");
    guest.wait_for("renewed");
    kill_process(passt, Signal::KILL).unwrap();
    guest.type_text("go on\n");
    let outcome = finish(guest);
    let carrier = ["before", "signalled", "after"].map(|name| outcome.number(name));
    assert_eq!(carrier, [1, 1, 0]);
    for said in ["a network backend is gone", "passt has ended"] {
        assert_eq!(outcome.errors.matches(said).count(), 1, "{outcome}");
    }
}

#[test]
fn passt_ends_with_mvm_however_that_ends() {
    let Some(_uplink) = Uplink::new(false) else { return };
    for signals in [&[Signal::KILL][..], &[Signal::TERM, Signal::INT]] {
        let mut guest = Boot::new().flag("--net", "user").start();
        guest.wait_for("init: started");
        let passt = passt_of(&guest);
        signals.iter().for_each(|signal| guest.signal(*signal));
        drop(guest.finish());
        wait_until_gone(passt);
    }
}

/// The point of it all.
#[test]
fn no_root_is_needed() {
    let Some(_uplink) = Uplink::new(true) else { return };
    fs::set_permissions("/dev/kvm", PermissionsExt::from_mode(0o666)).unwrap();
    let directory = TempDir::new().unwrap();
    let copy = |from: &Path, name: &str| {
        let to = directory.path().join(name);
        fs::copy(from, &to).unwrap();
        to
    };
    let kernel = copy(&tests::kernel("vmlinux"), "vmlinux");
    let program = copy(&tests::mvm(), "mvm");
    let world = serve("203.0.113.5:7006", "from the world\n");
    let script = format!("{DHCP}; wget -qO- http://203.0.113.5:7006/world");
    let boot = Boot::new().flag("--kernel", kernel).flag("-p", "8080:80").script(&script);
    let (command, boot) = boot.command();
    for files in [directory.path(), boot.path()] {
        fs::set_permissions(files, PermissionsExt::from_mode(0o755)).unwrap();
    }
    for entry in fs::read_dir(boot.path()).unwrap() {
        fs::set_permissions(entry.unwrap().path(), PermissionsExt::from_mode(0o666)).unwrap();
    }
    let run = |arguments: &[&std::ffi::OsStr]| {
        let mut user = Command::new("setpriv");
        user.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program).args(arguments);
        user.stdin(Stdio::null()).output().unwrap()
    };
    let output = run(&command.get_args().collect::<Vec<_>>());
    let console = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{console}\n{errors}");
    assert!(console.contains("from the world"), "{console}\n{errors}");
    assert_eq!(world.join().unwrap(), "/world");
}
