//! Certificates of the authorities that are trusted.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use ureq::tls::{Certificate, PemItem, parse_pem};

use super::RegistryError;

/// Where systems have the certificates that they trust.
const ROOTS: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Where docker and podman look for those of a registry: in `HOST/*.crt`, or `HOST:PORT/*.crt`.
pub(super) const OF_REGISTRIES: [&str; 2] = ["/etc/docker/certs.d", "/etc/containers/certs.d"];
/// The most bytes of a file of certificates.
const MAX_FILE: u64 = 16 << 20;
/// The most files of a registry.
const MAX_FILES: usize = 64;

/// Which certificates are trusted.
#[derive(Debug)]
pub(super) struct Certificates {
    /// The file that SSL_CERT_FILE names, or the system's.
    system: Option<PathBuf>,
    /// Files besides that.
    more: Vec<PathBuf>,
}

impl Certificates {
    pub(super) fn new(more: Vec<PathBuf>) -> Self {
        let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from).into_iter();
        let system = named.chain(ROOTS.iter().map(PathBuf::from)).find(|path| path.exists());
        Self { system, more }
    }

    /// The files of a registry, by its host and port.
    pub(super) fn of_host(&self, authority: &str) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for directory in OF_REGISTRIES {
            let Ok(entries) = fs::read_dir(Path::new(directory).join(authority)) else { continue };
            let paths = entries.filter_map(Result::ok).map(|entry| entry.path()).take(MAX_FILES);
            files.extend(paths.filter(|path| path.extension().is_some_and(|extension| extension == "crt")));
        }
        files
    }

    /// The files for all registries.
    pub(super) fn shared(&self) -> impl Iterator<Item = &PathBuf> {
        self.system.iter().chain(&self.more)
    }

    /// The certificates of the file that SSL_CERT_FILE names or the system's, of those that the options have, and of
    /// `own`.
    pub(super) fn roots(&self, own: &[PathBuf]) -> Result<Vec<Certificate<'static>>, RegistryError> {
        let mut certificates = Vec::new();
        for path in self.shared().chain(own) {
            let text = read(path).map_err(|source| RegistryError::Roots { path: path.clone(), source })?;
            let items = parse_pem(&text).filter_map(Result::ok);
            certificates.extend(items.filter_map(|item| match item {
                PemItem::Certificate(certificate) => Some(certificate),
                _ => None,
            }));
        }
        if certificates.is_empty() { Err(RegistryError::NoRoots) } else { Ok(certificates) }
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?.take(MAX_FILE).read_to_end(&mut text)?;
    Ok(text)
}
