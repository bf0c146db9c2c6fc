//! Sockets between the guest and the host.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use tests::{Boot, vsock_program};

/// Longer than anything here takes, and shorter than the tests' own watchdog.
const PATIENCE: Duration = Duration::from_secs(60);

/// A directory with the host's sockets.
struct Sockets(TempDir);

impl Sockets {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("v")
    }

    /// A guest with a socket device that runs `script`, in which `vsock` is `tests/programs/vsock.c`.
    fn guest(&self, script: &str) -> Boot {
        let program = std::fs::read(vsock_program()).unwrap();
        let disk = self.0.path().join("program");
        let padding = program.len().next_multiple_of(512) - program.len();
        std::fs::write(&disk, [program, vec![0; padding]].concat()).unwrap();
        let get = "for d in /sys/block/vd*; do
                [ \"$(cat $d/serial)\" = vsock ] && cat /dev/${d##*/} >/tmp/vsock
            done
            chmod +x /tmp/vsock; PATH=/tmp:$PATH";
        Boot::new()
            .flag("--vsock", self.path())
            .flag("--disk", format!("{},readonly,id=vsock", disk.display()))
            .script(&format!("{get}\n{script}"))
    }

    /// A connection to the guest's `port`; `None`, where nobody listens there.
    fn connect(&self, port: u32) -> Option<UnixStream> {
        let mut stream = UnixStream::connect(self.path()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        writeln!(stream, "CONNECT {port}").unwrap();
        let mut answer = Vec::new();
        // Byte by byte: what is behind the line belongs to the guest's program.
        while !answer.ends_with(b"\n") {
            let mut byte = [0];
            if stream.read(&mut byte).unwrap() == 0 {
                assert!(answer.is_empty());
                return None;
            }
            answer.extend(byte);
        }
        let answer = String::from_utf8(answer).unwrap();
        let port: u32 = answer.strip_prefix("OK ").unwrap().trim_end().parse().unwrap();
        assert!(port >= 1 << 30, "{answer}");
        Some(stream)
    }

    /// Listens for the guest's connections to `port` of the host.
    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(format!("{}_{port}", self.path().display())).unwrap()
    }
}

#[test]
fn a_process_of_the_host_talks_to_a_program_of_the_guest() {
    let sockets = Sockets::new();
    let mut guest = sockets.guest("vsock echo 52").start();
    guest.wait_for("listening");
    let mut stream = sockets.connect(52).unwrap();
    stream.write_all(b"Hello").unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"Hello");
}
