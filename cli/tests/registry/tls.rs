//! A certificate authority, and a token server with HTTPS.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::place::run;
use crate::server::{PASSWORD, USER};

/// The name that a registry has besides its address.
pub const NAME: &str = "registry.test";

/// An authority, with a certificate for 127.0.0.1 and [`NAME`].
pub struct Authority(TempDir);

impl Authority {
    pub fn new() -> Self {
        let authority = Self(TempDir::new().unwrap());
        fs::create_dir(authority.directory()).unwrap();
        let path = |name: &str| authority.path(name).to_str().unwrap().to_owned();
        let (ca, ca_key) = (authority.ca().to_str().unwrap().to_owned(), path("ca.key"));
        let new = ["req", "-newkey", "rsa:2048", "-nodes"];
        run(openssl(&new)
            .args(["-x509", "-days", "2", "-subj", "/CN=test CA"])
            .args(["-keyout", &ca_key, "-out", &ca]));
        let (key, request, certificate) = (path("server.key"), path("server.csr"), path("server.crt"));
        run(openssl(&new).args(["-subj", "/CN=server", "-keyout", &key, "-out", &request]));
        let extensions = path("extensions");
        fs::write(&extensions, format!("subjectAltName=IP:127.0.0.1,DNS:{NAME}\n")).unwrap();
        let sign = ["x509", "-req", "-days", "2", "-CAcreateserial"];
        run(openssl(&sign)
            .args(["-in", &request, "-CA", &ca, "-CAkey", &ca_key, "-extfile", &extensions])
            .args(["-out", &certificate]));
        authority
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A directory that has the authority's certificate and nothing else.
    pub fn directory(&self) -> PathBuf {
        self.path("certificates")
    }

    pub fn ca(&self) -> PathBuf {
        self.directory().join("ca.crt")
    }

    /// A server's certificate, and its key.
    pub fn server(&self) -> (PathBuf, PathBuf) {
        (self.path("server.crt"), self.path("server.key"))
    }
}

fn openssl(arguments: &[&str]) -> Command {
    let mut command = Command::new("openssl");
    command.args(arguments);
    command
}

/// Gives tokens to the user that registries know.
pub struct TokenServer {
    child: Child,
    pub realm: String,
    /// The certificate with which tokens are signed.
    pub certificate: PathBuf,
}

impl TokenServer {
    pub fn start(authority: &Authority) -> Self {
        let (certificate, key) = authority.server();
        let mut command = Command::new("python3");
        command
            .args(["-c", include_str!("token_server.py")])
            .arg(&certificate)
            .arg(key)
            .arg(format!("{USER}:{PASSWORD}"));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("python3");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { child, realm: format!("https://127.0.0.1:{}/token", line.trim()), certificate }
    }
}

impl Drop for TokenServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
