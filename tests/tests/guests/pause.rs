//! `mvm pause`: a paused VM touches nothing, and after `mvm resume` nothing is lost.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tempfile::TempDir;
use tests::{Boot, Guest, HostLink, RamCopy, fio_rootfs, run_mvm, sparse_file, vsock_program};

const MEMORY: u64 = 96 << 20;
/// How often the VM is paused, and in how many of these its RAM is compared.
const CYCLES: u32 = 200;
const COMPARISONS: u32 = 10;
/// Longer than a stream stands still while the VM is paused, and shorter than the tests' own watchdog.
const DEADLINE: Duration = Duration::from_secs(120);

/// What both ends of a connection have in common.
trait Stream: Read + Write + Send + Sized + 'static {
    fn end_writing(&self);
}

impl Stream for TcpStream {
    fn end_writing(&self) {
        self.shutdown(Shutdown::Write).expect("the connection lives");
    }
}

impl Stream for UnixStream {
    fn end_writing(&self) {
        self.shutdown(Shutdown::Write).expect("the connection lives");
    }
}

/// How often a stream sends a block: there is always something on its way, and time for all others.
const PACE: Duration = Duration::from_millis(20);

/// Sends numbers to a guest that sends them back, and checks what comes.
struct EchoTraffic {
    stop: Arc<AtomicBool>,
    /// How many numbers have come back.
    received: Arc<(Mutex<u64>, Condvar)>,
    threads: [JoinHandle<u64>; 2],
}

impl EchoTraffic {
    /// Works on `writer` and `reader`, which are the same connection.
    fn start<S: Stream>(mut writer: S, mut reader: S) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let received = Arc::new((Mutex::new(0), Condvar::new()));
        let (ends, count) = (stop.clone(), received.clone());
        let sender = std::thread::spawn(move || {
            let mut next = 0_u64;
            while !ends.load(Ordering::Relaxed) {
                let block: Vec<u8> = (next..next + 1024).flat_map(u64::to_le_bytes).collect();
                writer.write_all(&block).expect("the guest takes what is sent");
                next += 1024;
                std::thread::sleep(PACE);
            }
            writer.end_writing();
            next
        });
        let receiver = std::thread::spawn(move || {
            let mut word = [0; 8];
            let mut reader = std::io::BufReader::new(&mut reader);
            let mut expected = 0_u64;
            while let Ok(()) = reader.read_exact(&mut word) {
                assert_eq!(u64::from_le_bytes(word), expected, "the stream has changed on its way");
                expected += 1;
                *count.0.lock().expect("the waiting side lives") = expected;
                count.1.notify_all();
            }
            expected
        });
        Self { stop, received, threads: [sender, receiver] }
    }

    /// Waits until more comes back than has so far.
    fn goes_on(&self) {
        let (received, changed) = &*self.received;
        let received = received.lock().expect("the stream is whole");
        let before = *received;
        let waited = changed.wait_timeout_while(received, DEADLINE, |received| *received == before);
        assert!(!waited.expect("the stream is whole").1.timed_out(), "a stream stands still");
    }

    /// Ends the stream and checks that all of it came back.
    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        let [sent, received] = self.threads.map(|thread| thread.join().expect("the stream is whole"));
        assert_eq!(sent, received, "numbers were lost");
    }
}

fn mvm_does(command: &str, name: &str) {
    let output = run_mvm([command, name]);
    assert!(output.status.success(), "mvm {command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A connection to a VM's control socket: without a process for each request, which the emulated processor takes long
/// to start.
struct Control(UnixStream);

impl Control {
    fn of(name: &str) -> Self {
        let output = run_mvm(["ps", "--json"]);
        let list = String::from_utf8_lossy(&output.stdout);
        let object = list.split("  {").find(|object| object.contains(&format!("\"name\": \"{name}\"")));
        let path = object.and_then(|object| object.split("\"control_socket\": \"").nth(1)?.split('"').next());
        let stream = UnixStream::connect(path.expect("the VM is listed")).expect("the VM serves it");
        stream.set_read_timeout(Some(DEADLINE)).expect("a socket has a deadline");
        Self(stream)
    }

    fn set_state(&mut self, state: &str) {
        let body = format!("{{\"state\":\"{state}\"}}");
        let head = format!("PATCH /vm HTTP/1.1\r\nHost: mvm\r\nContent-Length: {}\r\n\r\n", body.len());
        self.0.write_all((head + &body).as_bytes()).expect("the VM reads");
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.0.read_exact(&mut byte).expect("the VM answers");
            answer.extend(byte);
        }
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 204"), "{state}: {answer}");
    }
}

/// Pauses the VM, has `provoke` do what would change its RAM if it ran, checks that nothing did, and resumes it.
fn pause_and_compare(guest: &mut Guest, name: &str, provoke: impl FnOnce(&mut Guest)) {
    mvm_does("pause", name);
    let before = RamCopy::read(guest.vm_pid(), MEMORY);
    provoke(guest);
    let after = RamCopy::read(guest.vm_pid(), MEMORY);
    assert!(before == after, "pages of RAM have changed: {:?}", before.changed_pages(&after));
    mvm_does("resume", name);
}

fn tcp(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the guest listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a socket has a deadline");
    stream.set_write_timeout(Some(DEADLINE)).expect("a socket has a deadline");
    stream
}

fn vsock(path: &Path, port: u32) -> UnixStream {
    let mut stream = UnixStream::connect(path).expect("mvm listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a socket has a deadline");
    stream.set_write_timeout(Some(DEADLINE)).expect("a socket has a deadline");
    writeln!(stream, "CONNECT {port}").expect("mvm reads");
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("the guest listens");
        line.extend(byte);
    }
    assert!(line.starts_with(b"OK "), "{}", String::from_utf8_lossy(&line));
    stream
}

/// What the guest does all the time: fio with verification on one disk, two echo servers, numbered lines on its
/// console. It answers each line that is typed, and ends at `stop`.
const WORK: &str = "ip addr add 10.9.20.2/24 dev eth0 && ip link set eth0 up
for d in /sys/block/vd*; do case $(cat $d/serial) in
    vsock) cat /dev/${d##*/} >/tmp/vsock; chmod +x /tmp/vsock ;;
    data) data=/dev/${d##*/} ;;
esac; done
/tmp/vsock echo 52 &
nc -ll -p 5000 -e cat &
# fio's libraries are large, and mostly not used.
echo 1 >/proc/sys/vm/overcommit_memory
(while [ ! -e /tmp/stop ]; do
    fio --name=v --filename=$data --size=4M --rw=randwrite --bs=4k --ioengine=io_uring --iodepth=8 --direct=1 \\
        --thread --verify=crc32c --verify_fatal=1 --do_verify=1 --verify_state_save=0 >/tmp/fio 2>&1 ||
        { cat /tmp/fio; echo fio failed; break; }
    echo round >>/tmp/rounds
done) & fio=$!
(n=0; while [ ! -e /tmp/stop ]; do echo seq=$n; n=$((n + 1)); sleep 0.05; done; echo lines=$n) & lines=$!
echo ready
while read line; do
    [ \"$line\" = stop ] && break
    echo \"heard $line\"
done
touch /tmp/stop
wait $fio $lines
echo rounds=$(wc -l </tmp/rounds)";

/// A VM that does [`WORK`], with connections to it.
pub struct Busy {
    pub guest: Guest,
    network: EchoTraffic,
    sockets: EchoTraffic,
    _directory: TempDir,
    _tap: HostLink,
}

impl Busy {
    /// Boots it with a tap of the host's.
    pub fn start(name: &str, tap: &'static str) -> Self {
        let link = HostLink::tap(tap, "", "10.9.20.1");
        let directory = TempDir::new().expect("a directory can be made");
        let program = std::fs::read(vsock_program()).expect("the program is there");
        let disk = directory.path().join("program");
        let padding = program.len().next_multiple_of(512) - program.len();
        std::fs::write(&disk, [program, vec![0; padding]].concat()).expect("a file can be made");
        let data = sparse_file(directory.path(), "data", 4 << 20);
        let socket = directory.path().join("v");
        let mut guest = Boot::new()
            .flag("--name", name)
            .flag("--memory", "96M")
            .flag("--console", "virtio")
            .flag("--rootfs", format!("{},readonly", fio_rootfs().display()))
            .flag("--disk", format!("{},readonly,id=vsock", disk.display()))
            .flag("--disk", format!("{},id=data", data.display()))
            .flag("--net", format!("tap={tap}"))
            .flag("--vsock", &socket)
            .switch("--balloon")
            .script(WORK)
            .start();
        guest.wait_for("ready");
        guest.wait_for("seq=2");
        let connection = tcp("10.9.20.2:5000");
        let network = EchoTraffic::start(connection.try_clone().expect("a descriptor is left"), connection);
        let connection = vsock(&socket, 52);
        let sockets = EchoTraffic::start(connection.try_clone().expect("a descriptor is left"), connection);
        Self { guest, network, sockets, _directory: directory, _tap: link }
    }

    /// Waits until something comes back on each connection.
    pub fn goes_on(&self) {
        self.network.goes_on();
        self.sockets.goes_on();
    }

    /// Ends it, and checks that nothing was lost on the way.
    pub fn finish(self) {
        let Self { mut guest, network, sockets, .. } = self;
        network.finish();
        sockets.finish();
        guest.type_text("stop\n");
        let outcome = guest.finish().expect_code(0);
        assert!(!outcome.output.contains("fio failed"), "{outcome}");
        assert!(outcome.number("rounds") > 0, "{outcome}");
        let numbers = outcome.output.lines().filter_map(|line| line.trim().strip_prefix("seq="));
        let numbers: Vec<u64> = numbers.map(|number| number.parse().expect("a whole line")).collect();
        let expected: Vec<u64> = (0..outcome.number("lines")).collect();
        assert_eq!(numbers, expected, "lines of the console were lost or doubled");
    }
}

#[test]
fn a_paused_vm_touches_no_ram_and_loses_nothing() {
    let mut busy = Busy::start("pausing", "mvmpause");
    let mut control = Control::of("pausing");
    let mut typed = 0;
    for cycle in 0..CYCLES {
        if cycle % (CYCLES / COMPARISONS) != 0 {
            control.set_state("Paused");
            control.set_state("Resumed");
            continue;
        }
        pause_and_compare(&mut busy.guest, "pausing", |guest| {
            guest.type_text(&format!("word {typed}\n"));
            let _ = run_mvm(["balloon", "pausing"]);
        });
        busy.guest.wait_for(&format!("heard word {typed}"));
        typed += 1;
        busy.goes_on();
        // mvm closes a connection that was silent for so long.
        control = Control::of("pausing");
    }
    busy.finish();
}

#[test]
fn a_share_in_traffic_is_paused_with_its_vm() {
    let folder = TempDir::new().expect("a directory can be made");
    let script = "cd /work; (n=0; while [ ! -e /tmp/stop ]; do
            head -c 300000 /dev/urandom >file; cp file copy$((n % 4)); sync
            echo 3 >/proc/sys/vm/drop_caches
            cmp file copy$((n % 4)) || echo differs; n=$((n + 1)); echo round=$n
        done; echo rounds=$n) & work=$!
        echo ready; read answer; touch /tmp/stop; wait $work";
    let mut guest = Boot::new()
        .flag("--name", "sharing")
        .flag("--memory", "96M")
        .flag("--share", format!("{}:/work", folder.path().display()))
        .script(script)
        .start();
    guest.wait_for("ready");
    for round in 1..=20 {
        guest.wait_for(&format!("round={round}"));
        if round % 4 == 0 {
            pause_and_compare(&mut guest, "sharing", |_| {
                // The host's side goes on: what it does to the folder is not the guest's to see yet.
                std::fs::write(folder.path().join("host"), round.to_string()).expect("the folder is there");
            });
        } else {
            mvm_does("pause", "sharing");
            mvm_does("resume", "sharing");
        }
    }
    guest.type_text("stop\n");
    let outcome = guest.finish().expect_code(0);
    assert!(outcome.number("rounds") >= 20 && !outcome.output.contains("differs"), "{outcome}");
}
