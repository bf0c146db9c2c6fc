//! Docker's own registry, and skopeo.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::*;
use crate::fixtures::gzip;

/// docker-registry on a port of 127.0.0.1.
struct Registry {
    child: Child,
    host: String,
    _directory: tempfile::TempDir,
}

impl Registry {
    fn start() -> Self {
        Self::with(|_| String::new())
    }

    /// `more` is a part of the configuration below `http`; it may use the directory.
    fn with(more: impl FnOnce(&Path) -> String) -> Self {
        let directory = tempfile::tempdir().unwrap();
        // Free now; another process could take it before the registry does, which then fails at once.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let host = format!("127.0.0.1:{port}");
        let data = directory.path().join("data");
        let config = directory.path().join("config.yml");
        let text = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {host}\n{}",
            data.display(),
            more(directory.path())
        );
        fs::write(&config, text).unwrap();
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("docker-registry: tools/need docker-registry");
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(
            log.any(|line| line.is_ok_and(|line| line.contains("listening on"))),
            "docker-registry has ended"
        );
        // What else it logs must not stop it.
        std::thread::spawn(move || log.count());
        Self { child, host, _directory: directory }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn skopeo(arguments: &[&str]) -> String {
    let output = Command::new("skopeo").args(arguments).output().expect("skopeo: tools/need skopeo");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn images_come_from_and_go_to_a_registry() {
    let registry = Registry::start();
    let (directory, store) = store();
    let fixture = fixture();
    let archive = directory.path().join("oci.tar");
    fs::write(&archive, fixture.oci_archive("x:1", "+gzip", gzip)).unwrap();
    let source = format!("oci-archive:{}", archive.display());
    let to = |name: &str| format!("docker://{}/{name}", registry.host);
    let copy = |from: &str, to: &str, more: &[&str]| {
        let tls = ["--insecure-policy", "copy", "-q", "--dest-tls-verify=false", "--src-tls-verify=false"];
        skopeo(&[&tls[..], more, &[from, to]].concat());
    };
    let plain = directory.path().join("docker.tar");
    fs::write(&plain, fixture.docker_archive(&["x:1"])).unwrap();
    let plain = format!("docker-archive:{}", plain.display());
    for (name, source, more) in [
        ("a/oci:1", &source, &[][..]),
        ("a/docker:1", &source, &["--format", "v2s2"]),
        ("a/zstd:1", &plain, &["--format", "oci", "--dest-compress-format", "zstd"]),
    ] {
        copy(source, &to(name), more);
        let (_directory, store) = self::store();
        let name = reference(&registry.host, name);
        let pulled = store.pull(&client(), &name, &()).unwrap();
        let image = store.resolve(&name.to_string()).unwrap().unwrap();
        assert_eq!(image.id, pulled.id);
        let layers: Vec<Digest> = image.layers.iter().map(|layer| layer.diff_id).collect();
        assert_eq!(layers, fixture.layers.iter().map(|layer| Digest::of(layer)).collect::<Vec<_>>());
        // To a repository of the same registry it goes as it came.
        let raw = ["inspect", "--raw", "--tls-verify=false"];
        let again = reference(&registry.host, &format!("again/{}", name.repository()));
        let digest = store.push(&client(), &name.to_string(), &again).unwrap();
        assert_eq!(digest, pulled.digest);
        let manifest = skopeo(&[&raw[..], &[&to(&format!("again/{}", name.repository()))]].concat());
        assert_eq!(Digest::of(manifest.as_bytes()), digest);
    }
    // An image that no registry has.
    store.load(&fixture.docker_archive(&["local:1"])[..]).unwrap();
    let name = reference(&registry.host, "new/image:2");
    let digest = store.push(&client(), "local:1", &name).unwrap();
    assert_eq!(store.push(&client(), "local:1", &name).unwrap(), digest, "the same bytes again");
    let checked = directory.path().join("checked");
    copy(&to("new/image:2"), &format!("oci:{}:2", checked.display()), &[]);
    let (_directory, other) = self::store();
    assert_eq!(other.load_directory(&checked).unwrap()[0].id, fixture.id());
    let error = other.pull(&client(), &reference(&registry.host, "new/image:3"), &()).unwrap_err();
    assert!(error.to_string().contains("there is no"), "{error}");
}

/// The same by HTTPS, with a certificate that the system does not know.
#[test]
fn a_registry_on_this_machine_may_want_https() {
    let certificates = tempfile::tempdir().unwrap();
    let path = |name: &str| certificates.path().join(name).to_str().unwrap().to_owned();
    let (key, certificate) = (path("key.pem"), path("certificate.pem"));
    let output = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ])
        .args([
            "-subj",
            "/CN=test",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-addext",
            "basicConstraints=CA:FALSE",
        ])
        .args(["-keyout", &key, "-out", &certificate])
        .output()
        .expect("openssl: tools/need openssl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let registry = Registry::with(|_| format!("  tls:\n    certificate: {certificate}\n    key: {key}\n"));
    let (_directory, store) = store();
    let fixture = fixture();
    store.load(&fixture.docker_archive(&["local:1"])[..]).unwrap();
    let name = reference(&registry.host, "a/b:1");
    let error = store.push(&client(), "local:1", &name).unwrap_err();
    assert!(chain(&error).contains("ertificate"), "{}", chain(&error));
    let trusting =
        || Client::new(RegistryOptions { certificates: vec![certificate.clone().into()], ..options() });
    let digest = store.push(&trusting(), "local:1", &name).unwrap();
    let (_directory, other) = self::store();
    assert_eq!(other.pull(&trusting(), &name, &()).unwrap().digest, digest);
    is_whole(&other, &fixture);
}
