//! Pulling: what is asked for, resumed and shared.

use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use serde_json::json;

use super::fake::{Content, Fake, Reply};
use super::*;
use crate::documents::{DOCKER_INDEX, OCI_INDEX, OCI_MANIFEST};
use crate::fixtures::descriptor;

#[test]
fn an_image_is_pulled_and_not_pulled_again() {
    let (_directory, store) = store();
    let fixture = fixture();
    let content = Content::of(&fixture);
    let fake = Fake::new(move |seen| content.reply(seen));
    let name = reference(&fake.host, "a:1");
    let pulled = store.pull(&client(), &name, &()).unwrap();
    assert!(pulled.id == fixture.id() && pulled.is_new);
    is_whole(&store, &fixture);
    assert_eq!((count(&store, "partial"), count(&store, "tmp")), (0, 0));
    let image = store.resolve(&name.to_string()).unwrap().unwrap();
    assert_eq!(image.digests, [name.with_digest(pulled.digest)]);
    assert_eq!(store.resolve(&name.with_digest(pulled.digest).to_string()).unwrap().unwrap().id, image.id);
    let blobs = fake.blobs();
    assert!(!store.pull(&client(), &name, &()).unwrap().is_new);
    assert_eq!(fake.blobs(), blobs);
    // By digest alone it is the same.
    store.pull(&client(), &name.with_digest(pulled.digest), &()).unwrap();
    assert!(
        store
            .pull(&client(), &name.with_digest(image.id), &())
            .unwrap_err()
            .to_string()
            .contains("there is no")
    );
}

#[test]
fn the_manifest_for_this_platform_is_taken_from_an_index() {
    let fixture = fixture();
    let mut content = Content::of(&fixture);
    let (_, manifest) = content.documents["1"].clone();
    let platform = |architecture: &str, variant: Option<&str>, bytes: &[u8]| {
        let mut entry = descriptor(OCI_MANIFEST, bytes);
        entry["platform"] = json!({"os": "linux", "architecture": architecture, "variant": variant});
        entry
    };
    for media_type in [OCI_INDEX, DOCKER_INDEX] {
        let entries = [
            platform("arm64", None, b"x"),
            platform("amd64", Some("v3"), b"y"),
            platform("amd64", None, &manifest),
        ];
        let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": entries});
        let index = serde_json::to_vec(&index).unwrap();
        content.document("index", media_type, &index);
        let arm = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": entries[..1]});
        content.document("arm", media_type, &serde_json::to_vec(&arm).unwrap());
        let (_directory, store) = store();
        let served = content.clone();
        let fake = Fake::new(move |seen| served.reply(seen));
        let pulled = store.pull(&client(), &reference(&fake.host, "a:index"), &()).unwrap();
        assert_eq!((pulled.id, pulled.digest), (fixture.id(), Digest::of(&index)));
        let error = store.pull(&client(), &reference(&fake.host, "a:arm"), &()).unwrap_err();
        assert!(error.to_string().contains("linux/arm64"), "{error}");
    }
}

#[test]
fn an_interrupted_download_is_resumed() {
    let (_directory, store) = store();
    let fixture = fixture();
    let content = Content::of(&fixture);
    let (largest, _) = content.largest();
    let attempts = AtomicUsize::new(0);
    let fake = Fake::new(move |seen| {
        let reply = content.reply(seen);
        let cut = reply.body.len() / 2;
        let is_early = seen.path.ends_with(&largest) && attempts.fetch_add(1, Ordering::Relaxed) < 3;
        if is_early { reply.cut(cut) } else { reply }
    });
    store.pull(&client(), &reference(&fake.host, "a:1"), &()).unwrap();
    is_whole(&store, &fixture);
    let resumed = fake.seen().iter().filter(|seen| seen.headers.contains_key("range")).count();
    assert_eq!(resumed, 3);
}

#[test]
fn what_an_earlier_pull_has_left_is_used_and_verified() {
    let fixture = fixture();
    let content = Content::of(&fixture);
    let (largest, bytes) = content.largest();
    let hex = largest.strip_prefix("sha256:").unwrap().to_owned();
    let mut damaged = bytes[..1000].to_vec();
    damaged[10] ^= 1;
    let mut longer = bytes.clone();
    longer.push(0);
    for (left, expected) in [
        (bytes[..1000].to_vec(), 1),
        (bytes.clone(), 0),
        (damaged, 2),
        (longer, 1),
        (vec![7; bytes.len()], 1),
    ] {
        let (_directory, store) = store();
        fs::write(store.root().join("partial").join(&hex), &left).unwrap();
        let served = content.clone();
        let fake = Fake::new(move |seen| served.reply(seen));
        store.pull(&client(), &reference(&fake.host, "a:1"), &()).unwrap();
        is_whole(&store, &fixture);
        let asked = fake.seen().iter().filter(|seen| seen.path.ends_with(&largest)).count();
        assert_eq!(asked, expected, "{} bytes were there", left.len());
        assert_eq!(count(&store, "partial"), 0);
    }
}

#[test]
fn a_registry_without_ranges_sends_it_all_again() {
    let (_directory, store) = store();
    let fixture = fixture();
    let content = Content::of(&fixture);
    let (largest, bytes) = content.largest();
    let hex = largest.strip_prefix("sha256:").unwrap();
    fs::write(store.root().join("partial").join(hex), &bytes[..1000]).unwrap();
    let fake = Fake::new(move |seen| {
        let mut seen = seen.clone();
        seen.headers.remove("range");
        content.reply(&seen)
    });
    store.pull(&client(), &reference(&fake.host, "a:1"), &()).unwrap();
    is_whole(&store, &fixture);
}

/// Several who pull images with the same layers at once, as processes do: each with a store of its own.
#[test]
fn concurrent_pulls_share_the_work() {
    let (_directory, store) = store();
    let fixture = fixture();
    let content = Content::of(&fixture);
    let layers: Vec<String> =
        content.blobs.keys().filter(|digest| **digest != fixture.id().to_string()).cloned().collect();
    let fake = Fake::new(move |seen| content.reply(seen));
    let barrier = Barrier::new(6);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let store = Store::open(store.root()).unwrap();
                barrier.wait();
                store.pull(&client(), &reference(&fake.host, "a:1"), &()).unwrap();
            });
        }
    });
    is_whole(&store, &fixture);
    for layer in layers {
        let asked = fake.seen().iter().filter(|seen| seen.path.ends_with(&layer)).count();
        assert_eq!(asked, 1, "{layer}");
    }
    let store = Store::open(store.root()).unwrap();
    assert_eq!((count(&store, "partial"), count(&store, "tmp")), (0, 0));
    assert!(!store.root().join("unswept").exists());
}

#[test]
fn a_mirror_is_asked_first_and_the_registry_where_it_fails() {
    let fixture = fixture();
    let content = Content::of(&fixture);
    let served = content.clone();
    let registry = Fake::new(move |seen| served.reply(seen));
    for (mirror, expected) in
        [(Fake::new(move |seen| content.reply(seen)), 0), (Fake::new(|_| Reply::new(500, "")), 1)]
    {
        let (_directory, store) = store();
        let before = registry.seen().len();
        let mirrors = vec![Mirror { of: registry.host.clone(), host: mirror.host.clone() }];
        let client = Client::new(RegistryOptions { mirrors, ..options() });
        let name = reference(&registry.host, "a:1");
        store.pull(&client, &name, &()).unwrap();
        assert_eq!(store.resolve(&name.to_string()).unwrap().unwrap().id, fixture.id());
        assert!(!mirror.seen().is_empty());
        assert_eq!(registry.seen().len() > before, expected == 1);
    }
}

/// Names the registry and the store to the test that is run as another process.
const PLACES: [&str; 2] = ["MVM_TEST_REGISTRY", "MVM_TEST_STORE"];

#[test]
#[ignore = "run by another test as a process of its own"]
fn pull_as_a_process() {
    let [host, path] = PLACES.map(|name| std::env::var(name).unwrap());
    let store = Store::open(path.as_ref()).unwrap();
    store.pull(&Client::new(RegistryOptions::default()), &reference(&host, "a:1"), &()).unwrap();
}

/// Waits until the file at `path`, whose directory is there, has `length` bytes.
fn wait_for_length(path: &Path, length: u64) {
    let changes = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
    let what = inotify::WatchFlags::CREATE | inotify::WatchFlags::MODIFY;
    inotify::add_watch(&changes, path.parent().unwrap(), what).unwrap();
    let timeout = Timespec { tv_sec: 20, tv_nsec: 0 };
    while fs::metadata(path).map_or(0, |data| data.len()) < length {
        let changed = poll(&mut [PollFd::new(&changes, PollFlags::IN)], Some(&timeout)).unwrap();
        assert_eq!(changed, 1, "nothing was downloaded");
        rustix::io::read(&changes, &mut [0; 4096]).unwrap();
    }
}

/// A process is killed in the middle of a layer; the next one goes on from there.
#[test]
fn a_killed_pull_is_resumed() {
    let (_directory, store) = store();
    let fixture = fixture();
    let content = Content::of(&fixture);
    let (largest, bytes) = content.largest();
    let partial = store.root().join("partial").join(largest.strip_prefix("sha256:").unwrap());
    let path = largest.clone();
    let fake = Fake::new(move |seen| {
        let reply = content.reply(seen);
        let is_first = seen.path.ends_with(&path) && !seen.headers.contains_key("range");
        if is_first { Reply { hangs: true, ..reply.cut(300_000) } } else { reply }
    });
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "registry::tests::pull::pull_as_a_process", "--ignored"])
        .envs(PLACES.into_iter().zip([fake.host.as_str(), store.root().to_str().unwrap()]))
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_for_length(&partial, 300_000);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(store.images().unwrap().is_empty());
    let store = Store::open(store.root()).unwrap();
    assert_eq!((count(&store, "tmp"), count(&store, "layers")), (0, 0));
    assert_eq!(fs::metadata(&partial).unwrap().len(), 300_000);
    store.pull(&client(), &reference(&fake.host, "a:1"), &()).unwrap();
    is_whole(&store, &fixture);
    let asked = fake.seen().into_iter().filter(|seen| seen.path.ends_with(&largest));
    let ranges: Vec<_> = asked.filter_map(|seen| seen.headers.get("range").cloned()).collect();
    assert_eq!(ranges, ["bytes=300000-"], "of {}", bytes.len());
    assert_eq!(count(&store, "partial"), 0);
}
