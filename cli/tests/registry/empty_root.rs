//! A root directory with nothing but the program, names and certificates.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::login::with_input;
use crate::place::{Place, run, succeeds, text};
use crate::server::{PASSWORD, Registry, USER, Wants};
use crate::tls::{Authority, NAME, TokenServer};

/// A root directory, in which [`NAME`] is this machine.
struct Root(TempDir);

impl Root {
    fn new() -> Self {
        let root = Self(TempDir::new().unwrap());
        root.write("etc/hosts", format!("127.0.0.1 localhost {NAME}\n").as_bytes());
        // An address that does not answer.
        root.write("etc/resolv.conf", b"nameserver 127.0.0.254\noptions timeout:1 attempts:1\n");
        root.add_program();
        root
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: &[u8]) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), content).unwrap();
    }

    /// The program as it is released where MVM_BIN names it; else the one of this build, with the libraries that it
    /// needs.
    fn add_program(&self) {
        if let Some(program) = std::env::var_os("MVM_BIN") {
            fs::copy(program, self.path("mvm")).unwrap();
            return;
        }
        let program = env!("CARGO_BIN_EXE_mvm");
        fs::copy(program, self.path("mvm")).unwrap();
        for word in
            run(Command::new("ldd").arg(program)).split_whitespace().filter(|word| word.starts_with('/'))
        {
            let to = self.path(word.trim_start_matches('/'));
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(word, to).unwrap();
        }
    }

    fn mvm(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--root"]).arg(self.0.path()).arg("/mvm").args(arguments);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command.env("HOME", "/home").env("MVM_DATA_DIR", "/data");
        command
    }
}

#[test]
fn an_image_is_pulled_by_name() {
    let registry = Registry::start(&Wants::default());
    let place = Place::new();
    registry.push(&place, &place.archive(&[100_000, 5000]), "a/b:1", None);
    let image = format!("{NAME}:{}/a/b:1", registry.port);
    let root = Root::new();
    for nsswitch in [
        None,
        Some("hosts: resolve [!UNAVAIL=return] files dns\n"),
        Some("hosts: files mymachines myhostname resolve dns\npasswd: files systemd\n"),
    ] {
        if let Some(text) = nsswitch {
            root.write("etc/nsswitch.conf", text.as_bytes());
        }
        succeeds(&mut root.mvm(&["pull", "--plain-http", &image]));
        assert!(succeeds(&mut root.mvm(&["images", "-q"])).len() > 10);
        succeeds(&mut root.mvm(&["rmi", &image]));
    }
    // The program as it is released does not load the host's libraries for that.
    if std::env::var_os("MVM_BIN").is_some() {
        let trace = place.path("trace");
        let mvm = root.mvm(&["pull", "--plain-http", &image]);
        let mut strace = place.command("strace");
        strace.args(["-f", "-qq", "-e", "trace=open,openat", "-o"]).arg(&trace).arg("--");
        strace.arg(mvm.get_program()).args(mvm.get_args());
        run(strace.envs(mvm.get_envs().filter_map(|(name, value)| Some((name, value?)))));
        let opened = fs::read_to_string(&trace).unwrap();
        assert!(opened.contains("/etc/hosts") && !opened.contains("libnss"), "{opened}");
        succeeds(&mut root.mvm(&["rmi", &image]));
    }
    // What is not there is named.
    let error = text(&root.mvm(&["pull", "--plain-http", "none.test:5000/a"]).output().unwrap());
    assert!(error.contains("cannot reach http://none.test:5000/v2/a/manifests/latest"), "{error}");
    let error = text(&root.mvm(&["pull", &image]).output().unwrap());
    assert!(error.contains("this machine has no CA certificates"), "{error}");
}

/// The names of Docker Hub are those of a mirror, over TLS, with tokens, and with each way to say which certificates
/// are trusted.
#[test]
fn a_mirror_with_tls_and_tokens_stands_for_docker_hub() {
    let authority = Authority::new();
    let tokens = TokenServer::start(&authority);
    let registry = Registry::start(&Wants { tls: Some(&authority), tokens: Some(&tokens), basic: false });
    let place = Place::new();
    let archive = place.archive(&[50_000]);
    for name in ["library/alpine:latest", "library/python:3.13", "library/nginx:latest", "owner/tool:1"] {
        registry.push(&place, &archive, name, Some(&authority));
    }
    let mirror = format!("{NAME}:{}", registry.port);
    let ca = fs::read(authority.ca()).unwrap();
    for (file, variable) in [
        ("my/ca.pem".to_owned(), Some("/my/ca.pem")),
        (format!("etc/docker/certs.d/{mirror}/ca.crt"), None),
        (format!("etc/containers/certs.d/{mirror}/ca.crt"), None),
        ("etc/ssl/certs/ca-certificates.crt".to_owned(), None),
    ] {
        let root = Root::new();
        let mvm = |arguments: &[&str]| {
            let mut command = root.mvm(arguments);
            command.env("MVM_REGISTRY_MIRROR", &mirror).envs(variable.map(|path| ("SSL_CERT_FILE", path)));
            command
        };
        let login = ["login", "-u", USER, "--password-stdin", &mirror];
        let untrusted = with_input(&mut mvm(&login), PASSWORD);
        assert!(
            !untrusted.status.success() && text(&untrusted).contains("certificates"),
            "{}",
            text(&untrusted)
        );
        root.write(&file, &ca);
        let refused = with_input(&mut mvm(&login), "wrong");
        assert!(text(&refused).contains("refuses the user name or the password"), "{}", text(&refused));
        let login = with_input(&mut mvm(&login), PASSWORD);
        assert!(login.status.success(), "{file}: {}", text(&login));
        for (name, canonical) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("python:3.13", "docker.io/library/python:3.13"),
            ("nginx", "docker.io/library/nginx:latest"),
            ("docker.io/owner/tool:1", "docker.io/owner/tool:1"),
        ] {
            let said = succeeds(&mut mvm(&["pull", name]));
            assert_eq!(said.lines().last(), Some(canonical));
        }
        let images = succeeds(&mut mvm(&["images"]));
        for name in ["alpine ", "python ", "nginx ", "owner/tool "] {
            assert!(images.lines().any(|line| line.starts_with(name)), "{images}");
        }
    }
    // Without the user's credentials the token server gives nothing.
    let root = Root::new();
    root.write("etc/ssl/cert.pem", &ca);
    let error = text(&root.mvm(&["pull", &format!("{mirror}/library/alpine")]).output().unwrap());
    assert!(error.contains(&format!("{mirror} denies access to library/alpine")), "{error}");
    assert!(Path::new(&root.path("data/images")).exists());
}
