//! Whether a VM's guest does something.

use std::path::{Path, PathBuf};
use std::time::Duration;

use instance::{CONTROL_SOCKET, Client, MetricsReport};

use crate::pod::pod_directory;

/// How long a VM may take to say what it has counted. Where the host is busy, that is more than it needs otherwise.
const ANSWER: Duration = Duration::from_secs(10);

/// What the socket device of a VM has counted of its guest.
pub struct Activity {
    control: PathBuf,
    packets: Option<u64>,
}

impl Activity {
    /// That of the VM whose device has the socket `path`.
    pub fn of(path: &Path) -> Self {
        let directory = path.parent().unwrap_or(path);
        let directory = pod_directory(directory).unwrap_or_else(|| directory.to_owned());
        Self { control: directory.join(CONTROL_SOCKET), packets: None }
    }

    /// Whether the guest has sent something since this was asked last; at first, whether the VM answers.
    pub fn goes_on(&mut self) -> bool {
        let report = Client::connect_with_limit(&self.control, ANSWER)
            .and_then(|mut client| client.get::<MetricsReport>("/metrics.json"));
        let Ok(report) = report else { return false };
        let packets = Some(report.sum("vsock", "tx_packets"));
        std::mem::replace(&mut self.packets, packets) < packets
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use std::thread;

    use serde_json::json;

    use super::*;
    use crate::machine::VSOCK;

    #[test]
    fn what_a_guest_sends_is_activity() {
        let (pod, member) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let listener = UnixListener::bind(pod.path().join(CONTROL_SOCKET)).unwrap();
        // A container of a pod has the device of the pod's VM.
        symlink(pod.path().join(VSOCK), member.path().join(VSOCK)).unwrap();
        let vm = thread::spawn(move || {
            for packets in [5, 5, 6, 5, 7] {
                let (mut socket, _) = listener.accept().unwrap();
                assert_ne!(socket.read(&mut [0; 1024]).unwrap(), 0);
                let report = MetricsReport {
                    process: instance::ProcessGauges::default(),
                    counters: serde_json::from_value(json!({"vsock": {"vsock0": {"tx_packets": packets}}}))
                        .unwrap(),
                };
                let body = serde_json::to_string(&report).unwrap();
                write!(socket, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
            }
        });
        let mut activity = Activity::of(&member.path().join(VSOCK));
        let seen = [(); 5].map(|()| activity.goes_on());
        assert_eq!(seen, [true, false, true, false, true]);
        vm.join().unwrap();
        assert!(!activity.goes_on());
    }
}
