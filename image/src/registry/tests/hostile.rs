//! Registries that do what none should.

use std::time::Instant;

use rstest::rstest;
use serde_json::json;

use super::fake::{Content, Fake, Part, Reply, Seen};
use super::*;
use crate::documents::{OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST};
use crate::fixtures::{descriptor, gzip};

/// Pulls from a registry that must not get away with it; nothing is left of that.
fn fails(handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> String {
    let (_directory, store) = store();
    let fake = Fake::new(handler);
    let start = Instant::now();
    let error = store.pull(&client(), &reference(&fake.host, "a:1"), &()).unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    for directory in ["images", "layers", "merged", "blobs", "tmp"] {
        assert_eq!(count(&store, directory), 0, "{directory}");
    }
    chain(&error)
}

/// A registry whose documents and blobs are as they should be, but for one.
fn changed(change: impl Fn(&Seen, Reply) -> Reply + Send + Sync + 'static) -> String {
    let content = Content::of(&fixture());
    fails(move |seen| change(seen, content.reply(seen)))
}

fn is_blob(seen: &Seen) -> bool {
    let config = fixture().id().to_string();
    seen.path.contains("/blobs/") && !seen.path.ends_with(&config)
}

#[test]
fn content_that_is_not_what_its_digest_says_is_refused() {
    let other = |at: usize| {
        move |reply: Reply| {
            let mut reply = reply;
            reply.body[at] ^= 1;
            reply
        }
    };
    let flip = other(20);
    let error = changed(move |seen, reply| if is_blob(seen) { flip(reply) } else { reply });
    assert!(error.contains("the blob has the digest"), "{error}");
    let flip = other(3);
    let error = changed(move |seen, reply| {
        let is_config = seen.path.contains("/blobs/") && !is_blob(seen);
        if is_config { flip(reply) } else { reply }
    });
    assert!(error.contains("the configuration has the digest"), "{error}");
    let error = changed(|seen, reply| {
        let is_manifest = seen.path.contains("/manifests/");
        let digest = Digest::of(b"another").to_string();
        if is_manifest { reply.header("docker-content-digest", digest) } else { reply }
    });
    assert!(error.contains("the manifest has the digest"), "{error}");
}

#[test]
fn bodies_are_bounded() {
    let long = |length: usize| Reply::new(200, vec![b' '; length]);
    for length in [5 << 20, 100 << 20] {
        let error =
            changed(move |seen, reply| if seen.path.contains("/manifests/") { long(length) } else { reply });
        assert!(error.contains("more than 4194304 bytes"), "{error}");
    }
    // A length that is not announced.
    let error = changed(move |seen, reply| {
        if !is_blob(seen) {
            return reply;
        }
        let body = [reply.body, vec![0; 1 << 20]].concat();
        Reply::new(200, body).header("content-length", "999999999999")
    });
    assert!(error.contains("sent more than the"), "{error}");
    let error = changed(|seen, reply| {
        let is_manifest = seen.path.contains("/manifests/");
        if is_manifest { reply.header("x", "y".repeat(100_000)) } else { reply }
    });
    assert!(error.contains("cannot reach"), "{error}");
}

#[test]
fn waits_have_deadlines() {
    let hang = |reply: Reply, cut| Reply { hangs: true, cut: Some(cut), ..reply };
    for cut in [0, 100] {
        let error = changed(move |seen, reply| if is_blob(seen) { hang(reply, cut) } else { reply });
        assert!(error.contains("cannot read"), "{error}");
        let error = changed(
            move |seen, reply| if seen.path.contains("/manifests/") { hang(reply, cut) } else { reply },
        );
        assert!(error.contains("cannot read"), "{error}");
    }
}

/// Bytes that come, but never all of them in the time that they may take.
#[test]
fn who_sends_a_byte_at_a_time_is_given_up() {
    for (part, expected) in [(Part::Head, "cannot reach"), (Part::Body, "cannot read the answer")] {
        let error = changed(move |seen, reply| match seen.path.contains("/manifests/") {
            true => Reply { drips: Some(part), ..reply },
            false => reply,
        });
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_connection_that_always_ends_early_is_given_up() {
    for (cut, expected) in [(0, "cannot read"), (5, "cannot read"), (1000, "cannot read")] {
        let error = changed(move |seen, reply| if is_blob(seen) { reply.cut(cut) } else { reply });
        assert!(error.contains(expected), "{error}");
        let error = changed(
            move |seen, reply| if seen.path.contains("/manifests/") { reply.cut(cut / 10) } else { reply },
        );
        assert!(error.contains("cannot read"), "{error}");
    }
}

#[test]
fn ranges_that_were_not_asked_for_are_refused() {
    for range in ["bytes 5-9/10", "bytes */10", "items 0-1/2", ""] {
        let error = changed(move |seen, reply| {
            if !is_blob(seen) {
                return reply;
            }
            Reply { status: 206, ..reply }.header("content-range", range)
        });
        assert!(error.contains("not the range that was asked for"), "{range:?}: {error}");
    }
}

#[test]
fn statuses_that_make_no_sense_are_errors() {
    for (status, expected) in
        [(204, "204"), (206, "206"), (304, "304"), (401, "denies"), (429, "429"), (500, "500")]
    {
        let error = changed(move |seen, reply| match seen.path.contains("/manifests/") {
            true => Reply { status, ..reply },
            false => reply,
        });
        assert!(error.contains(expected), "{status}: {error}");
        let error = changed(move |seen, reply| if is_blob(seen) { Reply { status, ..reply } } else { reply });
        assert!(!error.is_empty(), "{status}: {error}");
    }
}

/// What does not speak HTTP at all.
#[test]
fn what_is_not_http_is_an_error() {
    use std::io::{Read, Write};
    for answer in
        [&b"SSH-2.0-OpenSSH_9.2\r\n"[..], b"\x15\x03\x03\0\x02\x02\x0a", b"HTTP/1.1 200\r\nx", b"\0\0\0\0"]
    {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // The client may go away.
                let _ = stream.and_then(|mut stream| {
                    let _ = stream.read(&mut [0; 1024])?;
                    stream.write_all(answer)
                });
            }
        });
        let (_directory, store) = store();
        let error = store.pull(&client(), &reference(&host, "a:1"), &()).unwrap_err();
        assert!(chain(&error).contains(&host), "{answer:?}: {}", chain(&error));
    }
}

/// Layers that are small until they are unpacked.
#[test]
fn what_is_unpacked_is_bounded() {
    let fixture =
        crate::fixtures::Fixture::new(&[&[("zeros", &vec![0; 8 << 20])], &[("more", &vec![0; 8 << 20])]]);
    let content = Content::of(&fixture);
    let fake = Fake::new(move |seen| content.reply(seen));
    let (_directory, mut store) = store();
    store.set_max_unpacked(10 << 20);
    let error = store.pull(&client(), &reference(&fake.host, "a:1"), &()).unwrap_err();
    assert!(error.to_string().contains("more than 10485760 bytes when they are unpacked"), "{error}");
    for directory in ["images", "layers", "merged", "tmp", "partial"] {
        assert_eq!(count(&store, directory), 0, "{directory}");
    }
    store.set_max_unpacked(20 << 20);
    store.pull(&client(), &reference(&fake.host, "a:1"), &()).unwrap();
}

#[rstest]
#[case::empty(json!({}), "the media type")]
#[case::array(json!([]), "invalid manifest")]
#[case::both(json!({"schemaVersion": 2, "manifests": [], "layers": []}), "both layers and manifests")]
#[case::schema_1(json!({"schemaVersion": 1, "fsLayers": []}), "(schema 1)")]
#[case::other_type(json!({"schemaVersion": 2, "mediaType": "text/plain", "layers": []}), "\"text/plain\"")]
#[case::not_its_type(json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "layers": []}), "not of the media type")]
#[case::chart(
    json!({"schemaVersion": 2, "config": descriptor("application/vnd.cncf.helm.config.v1+json", b""), "layers": []}),
    "helm"
)]
#[case::bad_digest(
    json!({"schemaVersion": 2, "layers": [],
        "config": {"mediaType": OCI_CONFIG, "digest": "sha256:../../etc", "size": 1}}),
    "invalid"
)]
#[case::large_config(
    json!({"schemaVersion": 2, "layers": [],
        "config": {"mediaType": OCI_CONFIG, "digest": Digest::of(b""), "size": 1_u64 << 40}}),
    "more than 4194304 bytes"
)]
#[case::empty_index(json!({"schemaVersion": 2, "manifests": []}), "the image is for nothing")]
fn documents_that_are_not_images_are_refused(#[case] document: serde_json::Value, #[case] expected: &str) {
    let mut content = Content::default();
    let media_type = if document.get("manifests").is_some() { OCI_INDEX } else { OCI_MANIFEST };
    content.document("1", media_type, document.to_string().as_bytes());
    let error = fails(move |seen| content.reply(seen));
    assert!(error.contains(expected), "{error}");
}

#[test]
fn layers_are_as_many_as_the_configuration_says_and_not_too_many() {
    let fixture = fixture();
    for count in [1, 3, 128] {
        let (manifest, blobs) = fixture.oci("+gzip", gzip);
        let mut manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        let layer = manifest["layers"][0].clone();
        manifest["layers"] = std::iter::repeat_n(layer, count).collect();
        let mut content = Content::of(&fixture);
        content.document("1", OCI_MANIFEST, manifest.to_string().as_bytes());
        assert!(blobs.len() == 3);
        let error = fails(move |seen| content.reply(seen));
        assert!(error.contains("layers"), "{error}");
    }
}

/// A layer that is what the manifest says, but not what the configuration says.
#[test]
fn a_layer_of_another_diff_id_is_refused() {
    let fixture = fixture();
    let mut content = Content::of(&fixture);
    let other = gzip(&crate::fixtures::tar(&[("evil", b"x")]));
    let mut manifest: serde_json::Value = serde_json::from_slice(&content.documents["1"].1).unwrap();
    manifest["layers"][1] = descriptor(&format!("{OCI_LAYER}+gzip"), &other);
    content.blobs.insert(Digest::of(&other).to_string(), other);
    content.document("1", OCI_MANIFEST, manifest.to_string().as_bytes());
    let error = fails(move |seen| content.reply(seen));
    assert!(error.contains("the decompressed layer has the digest"), "{error}");
}

#[test]
fn redirects_are_followed_a_few_times() {
    let error = fails(|seen| match &*seen.path {
        "/v2/" => Reply::new(200, ""),
        path => Reply::new(307, "").header("location", path.to_owned() + "x"),
    });
    assert!(error.contains("redirects too often"), "{error}");
    for target in ["file:///etc/passwd", "https://user:password@127.0.0.1/", "gopher://x/"] {
        let error = fails(move |seen| match &*seen.path {
            "/v2/" => Reply::new(200, ""),
            _ => Reply::new(302, "").header("location", target),
        });
        assert!(error.contains("which is not followed"), "{error}");
    }
}

#[test]
fn what_a_registry_says_is_shown_on_one_line() {
    let text = json!({"errors": [{"code": "X", "message": format!("line\n\u{1b}[31m{}", "y".repeat(9999))}]})
        .to_string();
    let error = fails(move |seen| Reply::new(if seen.path == "/v2/" { 200 } else { 418 }, text.clone()));
    assert!(error.contains("answers with status 418: line[31my"), "{error}");
    assert!(error.len() < 400 && !error.contains(char::is_control), "{error}");
    let error = fails(|_| Reply::new(404, ""));
    assert!(error.contains("there is no 127.0.0.1"), "{error}");
    let error = fails(|seen| Reply::new(if seen.path == "/v2/" { 200 } else { 403 }, ""));
    assert!(error.contains("denies access to a"), "{error}");
}

#[test]
fn who_does_not_listen_is_named() {
    let (_directory, store) = store();
    let error = store.pull(&client(), &"127.0.0.1:1/a".parse().unwrap(), &()).unwrap_err();
    assert!(chain(&error).starts_with("cannot reach http://127.0.0.1:1/v2/"), "{}", chain(&error));
}
