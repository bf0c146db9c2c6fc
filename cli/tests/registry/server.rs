//! docker-registry on a port of 127.0.0.1.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};

use tempfile::TempDir;

use crate::place::{Place, run};
use crate::tls::{Authority, TokenServer};

/// The user that registries know, and the password.
pub const USER: &str = "me";
pub const PASSWORD: &str = "s:ecret";

/// What a registry wants of its clients.
#[derive(Default)]
pub struct Wants<'a> {
    pub basic: bool,
    pub tls: Option<&'a Authority>,
    pub tokens: Option<&'a TokenServer>,
}

pub struct Registry {
    child: Child,
    pub host: String,
    pub port: u16,
    log: Arc<Log>,
    _directory: TempDir,
}

#[derive(Default)]
struct Log {
    lines: Mutex<Vec<String>>,
    added: Condvar,
}

/// A port that is free now: another process could take it before it is used, which then fails at once.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Registry {
    pub fn start(wants: &Wants<'_>) -> Self {
        let directory = TempDir::new().unwrap();
        let path = |name: &str| directory.path().join(name);
        let port = free_port();
        let host = format!("127.0.0.1:{port}");
        let mut config = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {host}\n",
            path("data").display()
        );
        if let Some(authority) = wants.tls {
            let (certificate, key) = authority.server();
            config +=
                &format!("  tls:\n    certificate: {}\n    key: {}\n", certificate.display(), key.display());
        }
        if wants.basic {
            let entry = run(Command::new("htpasswd").args(["-nbB", USER, PASSWORD]));
            fs::write(path("htpasswd"), entry).unwrap();
            config +=
                &format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", path("htpasswd").display());
        }
        if let Some(tokens) = wants.tokens {
            config += &format!(
                "auth:\n  token:\n    realm: {}\n    service: test\n    issuer: test\n    rootcertbundle: {}\n",
                tokens.realm,
                tokens.certificate.display()
            );
        }
        fs::write(path("config.yml"), config).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(path("config.yml")).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("docker-registry: tools/need docker-registry");
        let log = Arc::new(Log::default());
        log.read(child.stdout.take().unwrap());
        log.read(child.stderr.take().unwrap());
        log.wait("listening on");
        Self { child, host, port, log, _directory: directory }
    }

    /// Waits for the request that has this in its line of the log, and returns all such lines.
    pub fn requests(&self, part: &str) -> Vec<String> {
        self.log.wait(part);
        let lines = self.log.lines.lock().unwrap();
        lines.iter().filter(|line| line.contains("HTTP/1.1\" ") && line.contains(part)).cloned().collect()
    }

    /// Puts the image of an archive of docker's into the registry.
    pub fn push(&self, place: &Place, archive: &Path, name: &str, authority: Option<&Authority>) {
        self.push_from(place, &format!("docker-archive:{}", archive.display()), name, authority);
    }

    /// Puts an image into the registry that is where skopeo is told.
    pub fn push_from(&self, place: &Place, source: &str, name: &str, authority: Option<&Authority>) {
        let mut skopeo = place.command("skopeo");
        skopeo.args(["--insecure-policy", "copy", "-q"]);
        match authority {
            Some(authority) => skopeo.arg("--dest-cert-dir").arg(authority.directory()),
            None => skopeo.arg("--dest-tls-verify=false"),
        };
        skopeo.args(["--dest-creds", &format!("{USER}:{PASSWORD}")]);
        run(skopeo.arg(source).arg(format!("docker://{}/{name}", self.host)));
    }
}

impl Log {
    fn read(self: &Arc<Self>, stream: impl Read + Send + 'static) {
        let log = Arc::clone(self);
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                log.lines.lock().unwrap().push(line);
                log.added.notify_all();
            }
            log.lines.lock().unwrap().push("docker-registry has ended".to_owned());
            log.added.notify_all();
        });
    }

    fn wait(&self, part: &str) {
        let lines = self.lines.lock().unwrap();
        let is_missing = |lines: &mut Vec<String>| {
            assert!(!lines.iter().any(|line| line.contains("has ended")), "{lines:?}");
            !lines.iter().any(|line| line.contains(part))
        };
        let (lines, timeout) =
            self.added.wait_timeout_while(lines, std::time::Duration::from_secs(30), is_missing).unwrap();
        assert!(!timeout.timed_out(), "no {part:?} in {lines:?}");
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
