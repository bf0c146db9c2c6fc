//! Networks: packets between a guest and its host, by taps and bridges.

use std::process::Command;

use tests::{Boot, Guest, Outcome};

/// Runs a shell script on the host as root.
fn host(script: &str) -> String {
    let output = Command::new("sh").args(["-e", "-c", script]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{script}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// A tap of the host's with an address, as long as a test lasts.
struct HostTap(&'static str);

impl HostTap {
    fn new(name: &'static str, options: &str, address: &str) -> Self {
        host(&format!(
            "ip tuntap add {name} mode tap {options}; ip addr add {address}/24 dev {name}; ip link set {name} up"
        ));
        Self(name)
    }
}

impl Drop for HostTap {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", self.0]).status();
    }
}

fn guest(net: &str, address: &str, script: &str) -> Boot {
    let setup = format!("ip addr add {address}/24 dev eth0 && ip link set eth0 up");
    Boot::new().flag("--net", net).script(&format!("{setup}\n{script}"))
}

fn finish(mut guest: Guest) -> Outcome {
    guest.close_input();
    guest.finish().expect_code(0)
}

#[test]
fn a_guest_and_its_host_reach_each_other() {
    let _tap = HostTap::new("mvmping", "", "10.9.1.1");
    let script = "ping -c 3 10.9.1.1 | grep -o '3 packets received'
        echo mac=$(cat /sys/class/net/eth0/address) mtu=$(cat /sys/class/net/eth0/mtu)
        echo ready; read answer; echo answer=$answer";
    let mut guest = guest("tap=mvmping,mac=02:00:00:00:0b:0c,mtu=1400", "10.9.1.2", script).start();
    guest.wait_for("ready");
    host("busybox ping -c 3 10.9.1.2");
    guest.type_text("yes\n");
    finish(guest)
        .expect("3 packets received")
        .expect_line("mac=02:00:00:00:0b:0c mtu=1400")
        .expect_line("answer=yes");
}
