//! A pod's keeper with clients of any kind, and with a VM and an agent that only answer.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::thread;

use agent_protocol::{Decoder, PORT, VERSION, encode};
use instance::keeper::{Child, Tie};
use instance::{VolumeDriver, VolumeName};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::super::clients::MAX_CLIENTS;
use super::super::{FromPod, ToPod};
use super::*;
use vmm::VmProcess;

/// A keeper that serves.
struct Rig {
    directory: TempDir,
    shared: Arc<Shared>,
    /// What the VM and the agent were asked for.
    asked: Receiver<Value>,
}

/// Takes a request of the agent's, and says how the connection goes on.
fn agent(mut socket: UnixStream, asked: &std::sync::mpsc::Sender<Value>) {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        socket.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    assert_eq!(line, format!("CONNECT {PORT}\n").into_bytes());
    socket.write_all(b"OK 1\n").unwrap();
    socket.write_all(&encode(&Reply::Hello { version: VERSION }).unwrap()).unwrap();
    let mut decoder = Decoder::default();
    loop {
        let mut bytes = vec![0; decoder.wants().unwrap().max(1)];
        match socket.read(&mut bytes) {
            Ok(0) | Err(_) => return,
            Ok(count) => decoder.push(&bytes[..count]),
        }
        match decoder.take::<Request>().unwrap() {
            Some(Request::Release { container, disks }) => {
                asked.send(json!({ "release": container, "disks": disks })).unwrap();
                socket.write_all(&encode(&Reply::Done).unwrap()).unwrap();
            }
            Some(Request::PowerOff) => asked.send(json!("power off")).unwrap(),
            _ => {}
        }
    }
}

impl Rig {
    fn new() -> Self {
        Self::with_patience(FIRST)
    }

    fn with_patience(patience: Duration) -> Self {
        let directory = TempDir::new().unwrap();
        let (ours, theirs) = Tie::pair().unwrap();
        #[expect(clippy::zombie_processes, reason = "it is waited for by its descriptor")]
        let process = Command::new("sleep").arg("1000").spawn().unwrap();
        let vm = Arc::new(VmProcess::of(ours, Child::of(&process).unwrap()));
        let (to_test, asked) = channel();
        let of_vm = to_test.clone();
        thread::spawn(move || {
            while let Ok(Some((request, files))) = theirs.receive_with::<Value>() {
                let (_, inside) = request.as_object().unwrap().iter().next().unwrap();
                // What was not asked for is passed over.
                theirs.send(&json!({ "Slot": { "number": 99_999, "failure": "of another" } })).unwrap();
                theirs.send(&json!({ "Slot": { "number": inside["number"], "failure": null } })).unwrap();
                of_vm.send(json!({ "vm": request, "files": files.len() })).unwrap();
            }
        });
        let listener = UnixListener::bind(directory.path().join(VSOCK)).unwrap();
        thread::spawn(move || {
            for socket in listener.incoming() {
                let asked = to_test.clone();
                thread::spawn(move || agent(socket.unwrap(), &asked));
            }
        });
        let (to_slots, replies) = sync_channel(REPLIES);
        let slots = Slots { table: SlotTable::new(SLOTS), replies, number: 0, holds: BTreeMap::new() };
        let shared = Arc::new(Shared {
            vm,
            vsock: directory.path().join(VSOCK),
            slots: Mutex::new(slots),
            members: Mutex::default(),
            changed: Condvar::new(),
            freed: Condvar::new(),
            volumes: Volumes::beside(directory.path()),
            clients: AtomicUsize::new(0),
            patience,
        });
        let of_thread = shared.clone();
        let (runs, _) = sync_channel(1);
        thread::spawn(move || listen(&of_thread, &to_slots, &runs));
        let clients = TieListener::bind(&directory.path().join(SOCKET)).unwrap();
        let of_thread = shared.clone();
        thread::spawn(move || of_thread.accept(&clients));
        Self { directory, shared, asked }
    }

    fn client(&self) -> Tie {
        Tie::connect(&self.directory.path().join(SOCKET)).unwrap()
    }

    /// What was asked for next.
    fn next(&self) -> Value {
        self.asked.recv_timeout(Duration::from_secs(20)).unwrap()
    }
}

impl Rig {
    /// What was asked for within so many milliseconds.
    fn next_within(&self, milliseconds: u64) -> Option<Value> {
        self.asked.recv_timeout(Duration::from_millis(milliseconds)).ok()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.shared.vm.kill();
        self.shared.vm.wait(LAST_WORDS);
    }
}

/// Asks as a client, with so many open files.
fn ask(client: &Tie, message: &ToPod, files: usize) -> FromPod {
    let file = File::open("/dev/null").unwrap();
    client.send_with(message, &vec![file.as_fd(); files]).unwrap();
    client.receive_by(Instant::now() + Duration::from_secs(20)).unwrap().unwrap()
}

fn image(container: &str, image: &str) -> ToPod {
    ToPod::Image { container: container.into(), image: image.into(), ends: vec![512, 4096] }
}

fn device(reply: &FromPod) -> (&str, u64) {
    match reply {
        FromPod::Device { device, sectors } => (device, *sectors),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_image_is_put_in_once_and_taken_out_after_its_last_container() {
    let rig = Rig::new();
    let (one, other) = (rig.client(), rig.client());
    assert_eq!(device(&ask(&one, &image("a1", "i"), 2)), ("/dev/vdb", 8));
    let inserted = rig.next();
    assert_eq!((&inserted["files"], &inserted["vm"]["Insert"]["read_only"]), (&json!(2), &json!(true)));
    assert_eq!(device(&ask(&one, &ToPod::Changes { ends: vec![1024] }, 1)), ("/dev/vdc", 2));
    assert_eq!(rig.next()["vm"]["Insert"]["read_only"], json!(false));
    // The same image is there.
    assert_eq!(device(&ask(&other, &image("b2", "i"), 2)), ("/dev/vdb", 8));
    assert!(matches!(ask(&one, &ToPod::Leave, 0), FromPod::Left));
    assert_eq!(rig.next(), json!({ "release": "a1", "disks": ["/dev/vdc"] }));
    assert_eq!(rig.next()["vm"]["Eject"]["slot"], json!(1));
    // A client that is gone leaves in the same way.
    drop(other);
    assert_eq!(rig.next(), json!({ "release": "b2", "disks": ["/dev/vdb"] }));
    assert_eq!(rig.next()["vm"]["Eject"]["slot"], json!(0));
    let again = rig.client();
    assert_eq!(device(&ask(&again, &image("a1", "j"), 2)), ("/dev/vdb", 8));
}

#[test]
fn a_volume_is_put_in_once_and_kept_from_others_until_it_is_out() {
    let rig = Rig::new();
    let volumes = Volumes::beside(rig.directory.path());
    let name: VolumeName = "data".parse().unwrap();
    let make = |name: &VolumeName, driver| {
        let record = crate::mounts::record(name, driver);
        volumes.create(&record, |path| std::fs::write(path, [0; 4096])).unwrap();
    };
    make(&name, VolumeDriver::Local);
    let volume = ToPod::Volume { name: name.clone() };
    let (one, other) = (rig.client(), rig.client());
    let refused = |reply: FromPod| match reply {
        FromPod::Refused(line) => line,
        other => panic!("{other:?}"),
    };
    assert!(refused(ask(&one, &volume, 0)).contains("an image before its volumes"));
    device(&ask(&one, &image("a1", "i"), 2));
    rig.next();
    assert_eq!(device(&ask(&one, &volume, 0)), ("/dev/vdc", 8));
    assert_eq!((&rig.next()["vm"]["Insert"]["read_only"], rig.next_within(0)), (&json!(false), None));
    assert!(volumes.hold(&name).is_err());
    device(&ask(&other, &image("b2", "i"), 2));
    assert_eq!(device(&ask(&other, &volume, 0)), ("/dev/vdc", 8));
    // Its last container takes it out.
    assert!(matches!(ask(&one, &ToPod::Leave, 0), FromPod::Left));
    assert_eq!(rig.next(), json!({ "release": "a1", "disks": [] }));
    assert!(matches!(ask(&other, &ToPod::Leave, 0), FromPod::Left));
    assert_eq!(rig.next(), json!({ "release": "b2", "disks": ["/dev/vdb", "/dev/vdc"] }));
    let held = volumes.hold(&name).unwrap();
    // What another VM has is not put in, nor what is no disk or not there.
    let late = rig.client();
    device(&ask(&late, &image("c3", "i"), 2));
    assert!(refused(ask(&late, &volume, 0)).contains("volume data is in use by another container"));
    drop(held);
    let shared: VolumeName = "shared".parse().unwrap();
    make(&shared, VolumeDriver::Shared);
    for (name, says) in
        [(shared, "is a directory of the host"), ("none".parse().unwrap(), "there is no volume none")]
    {
        let line = refused(ask(&late, &ToPod::Volume { name }, 0));
        assert!(line.contains(says) && !line.contains('\n'), "{line}");
    }
    device(&ask(&late, &volume, 0));
}

#[test]
fn what_a_client_may_not_ask_is_refused_in_one_line() {
    let rig = Rig::new();
    let refused = |reply: FromPod| match reply {
        FromPod::Refused(line) => {
            assert!(!line.contains('\n'), "{line}");
            line
        }
        other => panic!("{other:?}"),
    };
    let client = rig.client();
    assert!(refused(ask(&client, &ToPod::Changes { ends: vec![512] }, 1)).contains("an image before"));
    for id in ["", "../x", "a b"] {
        assert!(refused(ask(&client, &image(id, "i"), 2)).contains("is not the ID of a container"));
    }
    device(&ask(&client, &image("a1", "i"), 2));
    assert!(refused(ask(&client, &image("a1", "i"), 2)).contains("is in the pod already"));
    assert!(refused(ask(&rig.client(), &image("a1", "i"), 2)).contains("is in the pod already"));
    device(&ask(&client, &ToPod::Changes { ends: vec![512] }, 1));
    assert!(refused(ask(&client, &ToPod::Changes { ends: vec![512] }, 1)).contains("one disk for changes"));
    let others: Vec<Tie> = (0..SLOTS - 2)
        .map(|number| {
            let other = rig.client();
            device(&ask(&other, &image(&format!("c{number}"), &format!("i{number}")), 2));
            other
        })
        .collect();
    let line = refused(ask(&rig.client(), &image("last", "last"), 2));
    assert!(line.contains("it has 12, one for each image in use"), "{line}");
    drop(others);
}

#[test]
fn clients_that_say_nonsense_or_are_too_many_do_not_disturb_others() {
    let rig = Rig::new();
    let good = rig.client();
    device(&ask(&good, &image("a1", "i"), 2));
    for nonsense in [json!({}), json!("x"), json!({"Image": 7}), json!({"Leave": {}})] {
        let client = rig.client();
        client.send(&nonsense).unwrap();
        // It is closed, without an answer.
        let answer = client.receive_by::<Value>(Instant::now() + Duration::from_secs(20));
        assert!(matches!(answer, Ok(None)), "{answer:?}");
    }
    let many: Vec<Tie> = (0..MAX_CLIENTS + 4).map(|_| rig.client()).collect();
    let last = many.last().unwrap().receive_by::<FromPod>(Instant::now() + Duration::from_secs(20));
    assert!(
        matches!(&last, Ok(Some(FromPod::Refused(line))) if line.contains("64 clients already")),
        "{last:?}"
    );
    drop(many);
    device(&ask(&good, &ToPod::Changes { ends: vec![512] }, 1));
}

#[test]
fn clients_that_are_silent_give_their_places_back() {
    let rig = Rig::with_patience(Duration::from_millis(300));
    let good = rig.client();
    device(&ask(&good, &image("a1", "i"), 2));
    let silent: Vec<Tie> = (1..MAX_CLIENTS).map(|_| rig.client()).collect();
    // One that has left has no container either.
    assert!(matches!(ask(&silent[0], &ToPod::Leave, 0), FromPod::Left));
    for client in &silent {
        let end = client.receive_by::<Value>(Instant::now() + Duration::from_secs(20));
        assert!(matches!(end, Ok(None)), "{end:?}");
    }
    // One with a container keeps its own, however long it is silent.
    device(&ask(&good, &ToPod::Changes { ends: vec![512] }, 1));
    let deadline = Instant::now() + Duration::from_secs(20);
    while rig.shared.clients.load(Ordering::SeqCst) > 1 {
        assert!(Instant::now() < deadline, "their places are not free");
        thread::yield_now();
    }
}

#[test]
fn a_pod_that_ends_takes_no_more_containers() {
    let rig = Rig::new();
    assert!(matches!(ask(&rig.client(), &ToPod::End, 0), FromPod::Ending));
    assert_eq!(rig.next(), json!("power off"));
    assert!(matches!(ask(&rig.client(), &image("a1", "i"), 2), FromPod::Ending));
}
