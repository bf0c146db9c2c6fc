//! Sockets between the guest and the host.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
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

    /// A connection to the guest's `port`; `None` where no program listens there.
    fn connect(&self, port: u32) -> Option<UnixStream> {
        let mut stream = patient(UnixStream::connect(self.path()).unwrap());
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

fn patient(stream: UnixStream) -> UnixStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Bytes that are not the same again soon.
fn pattern(length: u32) -> Vec<u8> {
    (0..length).map(|index| index.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect()
}

fn sha256(bytes: &[u8]) -> String {
    let mut child = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap()[..64].to_owned()
}

/// Sends `bytes` and then the end of this direction, while all that comes is read. Gives its checksum.
fn exchange(mut stream: UnixStream, bytes: &[u8]) -> String {
    let mut reader = stream.try_clone().unwrap();
    let reader = std::thread::spawn(move || {
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        sha256(&read)
    });
    stream.write_all(bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    reader.join().unwrap()
}

#[test]
fn both_sides_begin_connections_and_megabytes_go_both_ways_at_once() {
    let sockets = Sockets::new();
    // Each end goes on to read after it has sent its last, or nothing would come to its end.
    let listener = sockets.listen(80);
    let script = "dd if=/dev/urandom of=/tmp/bytes bs=1M count=3 2>/dev/null
        echo sent=$(sha256sum </tmp/bytes | cut -c1-64)
        echo first=$(vsock listen 52 </tmp/bytes | sha256sum | cut -c1-64)
        echo second=$(vsock connect 80 </tmp/bytes | sha256sum | cut -c1-64)";
    let mut guest = sockets.guest(script).start();
    guest.wait_for("listening");
    let bytes = pattern(4 << 20);
    let first = exchange(sockets.connect(52).unwrap(), &bytes);
    let second = exchange(patient(listener.accept().unwrap().0), &bytes);
    let outcome = guest.finish().expect_code(0);
    let sum = sha256(&bytes);
    assert_eq!([outcome.value("first"), outcome.value("second")], [&sum, &sum]);
    assert_eq!([first.as_str(), &second], [outcome.value("sent"), outcome.value("sent")]);
    assert!(!sockets.path().exists(), "the socket goes with the VM");
}

#[test]
fn a_port_without_anybody_is_refused_at_once_from_either_side() {
    let sockets = Sockets::new();
    let mut guest = sockets.guest("vsock connect 81; vsock echo 52").start();
    guest.wait_for("connect: ECONNRESET");
    guest.wait_for("listening");
    assert!(sockets.connect(53).is_none());
    assert!(sockets.connect(52).is_some());
}

#[test]
fn a_thousand_connections_are_there_at_once_from_either_side() {
    raise_descriptor_limit();
    let sockets = Sockets::new();
    let listener = sockets.listen(80);
    let mut guest = sockets.guest("vsock many 80 1000; vsock echo 52").start();
    let mut streams: Vec<_> = (0..1000).map(|_| patient(listener.accept().unwrap().0)).collect();
    for stream in &mut streams {
        let mut line = [0; 10];
        stream.read_exact(&mut line).unwrap();
        stream.write_all(&line).unwrap();
    }
    guest.wait_for("echoes=1000");
    drop(streams);
    guest.wait_for("listening");
    let mut streams: Vec<_> = (0..1000).map(|_| sockets.connect(52).unwrap()).collect();
    for (number, stream) in (0_u32..).zip(&mut streams) {
        stream.write_all(&number.to_le_bytes()).unwrap();
    }
    for (number, stream) in (0_u32..).zip(&mut streams) {
        let mut echo = [0; 4];
        stream.read_exact(&mut echo).unwrap();
        assert_eq!(echo, number.to_le_bytes());
    }
}

fn raise_descriptor_limit() {
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).unwrap();
}

#[test]
fn an_end_that_vanishes_in_the_middle_is_an_error_at_the_other_and_no_more() {
    let sockets = Sockets::new();
    let listener = sockets.listen(80);
    let script = "vsock connect 80 </dev/zero; echo over
        vsock echo 52 & vsock connect 80 </dev/zero >/dev/null";
    let mut guest = sockets.guest(script).start();
    let mut first = patient(listener.accept().unwrap().0);
    first.read_exact(&mut vec![0; 1 << 20]).unwrap();
    drop(first);
    // The guest's program is told while it writes.
    guest.wait_for("write: E");
    guest.wait_for("over");
    guest.wait_for("listening");
    let mut echo = sockets.connect(52).unwrap();
    let mut second = patient(listener.accept().unwrap().0);
    second.read_exact(&mut vec![0; 1 << 20]).unwrap();
    // Others are not held up by the one that is not read.
    echo.write_all(b"Hello").unwrap();
    let mut answer = [0; 5];
    echo.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"Hello");
    guest.signal(Signal::KILL);
    let mut rest = Vec::new();
    second.read_to_end(&mut rest).unwrap();
    // The socket of a VM that was killed is still there, and the next VM takes it over.
    assert!(sockets.path().exists());
    std::fs::remove_file(format!("{}_80", sockets.path().display())).unwrap();
    sockets.guest("echo again").run().expect_code(0).expect_line("again");
}

#[test]
fn a_driver_that_starts_anew_finds_a_device_that_has_forgotten_everything() {
    let sockets = Sockets::new();
    let listener = sockets.listen(80);
    let script = "vsock hold 80 10 &
        read line; driver=/sys/bus/virtio/drivers/vmw_vsock_virtio_transport
        device=$(basename $(readlink -f $driver/virtio*)); echo $device >$driver/unbind; echo unbound
        read line; kill $!; echo $device >$driver/bind; vsock many 80 1; vsock echo 52 & read line; reboot -f";
    let mut guest = sockets.guest(script).start();
    let mut streams: Vec<_> = (0..10).map(|_| patient(listener.accept().unwrap().0)).collect();
    guest.wait_for("connected=10");
    guest.type_text("\n");
    guest.wait_for("unbound");
    for stream in &mut streams {
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }
    guest.type_text("\n");
    let mut stream = patient(listener.accept().unwrap().0);
    let mut line = [0; 10];
    stream.read_exact(&mut line).unwrap();
    stream.write_all(&line).unwrap();
    guest.wait_for("echoes=1");
    guest.wait_for("listening");
    let mut stream = sockets.connect(52).unwrap();
    guest.type_text("\n");
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    guest.finish().expect_code(0);
    assert!(!sockets.path().exists());
}

#[test]
fn two_vms_cannot_have_one_socket() {
    let sockets = Sockets::new();
    let mut first = Boot::new().flag("--vsock", sockets.path()).start();
    first.wait_for("init: started");
    Boot::new().flag("--vsock", sockets.path()).run().expect_code(2).expect("another process listens there");
    assert!(sockets.path().exists(), "it is still the first one's");
}
