//! Networks of the host's, as long as a test lasts.

use std::process::Command;

/// Runs a shell script on the host, which needs root.
pub fn host(script: &str) -> String {
    let output = Command::new("sh").args(["-e", "-c", script]).output().expect("sh can be run");
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(output.status.success(), "{script}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// A tap or a bridge of the host's with an address, as long as a test lasts.
pub struct HostLink(&'static str);

impl HostLink {
    /// Makes a tap with the given `options` of `ip tuntap`.
    pub fn tap(name: &'static str, options: &str, address: &str) -> Self {
        Self::up(name, &format!("ip tuntap add {name} mode tap {options}"), address)
    }

    /// Makes a bridge.
    pub fn bridge(name: &'static str, address: &str) -> Self {
        Self::up(name, &format!("ip link add {name} type bridge"), address)
    }

    fn up(name: &'static str, make: &str, address: &str) -> Self {
        host(make);
        let link = Self(name);
        host(&format!("ip addr add {address}/24 dev {name}; ip link set {name} up"));
        link
    }

    /// A counter of the host's kernel.
    pub fn count(&self, counter: &str) -> u64 {
        host(&format!("cat /sys/class/net/{}/statistics/{counter}", self.0)).parse().expect("a number")
    }

    /// Bytes and packets that the host has taken (`rx`) or given (`tx`).
    pub fn counts(&self, way: &str) -> (u64, u64) {
        (self.count(&format!("{way}_bytes")), self.count(&format!("{way}_packets")))
    }

    /// The names of a bridge's ports.
    pub fn ports(&self) -> String {
        host(&format!("ls /sys/class/net/{}/brif", self.0))
    }
}

impl Drop for HostLink {
    fn drop(&mut self) {
        // Where the test has removed it itself, there is nothing to remove.
        let _ = Command::new("ip").args(["link", "del", self.0]).output();
    }
}
