//! The files that a client reads, for who denies it others.

use std::fs;
use std::path::{Path, PathBuf};

use super::Client;
use super::certificates::OF_REGISTRIES;

/// What the C library reads to resolve names (`nsswitch.conf`, resolv.conf(5), host.conf(5), gai.conf(5)).
const NAMES: [&str; 5] =
    ["/etc/nsswitch.conf", "/etc/hosts", "/etc/resolv.conf", "/etc/host.conf", "/etc/gai.conf"];
/// Where services that follow the network keep `resolv.conf`, which they replace.
const SERVICES: [&str; 2] = ["/run/systemd/resolve", "/run/resolvconf"];
/// The most registries with certificates of their own.
const MAX_REGISTRIES: usize = 256;

/// The files that a client reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientFiles {
    /// Files.
    pub files: Vec<PathBuf>,
    /// Directories whose files are read.
    pub directories: Vec<PathBuf>,
    /// Directories of which the names are read, and those of directories in them.
    pub listed: Vec<PathBuf>,
}

impl Client {
    /// The files that this client may have to read, whichever registry it is sent to: certificates, and what resolves
    /// names.
    pub fn files(&self) -> ClientFiles {
        let certificates = self.http.certificates();
        let listed: Vec<PathBuf> = OF_REGISTRIES.iter().map(PathBuf::from).collect();
        let registries = listed.iter().flat_map(|directory| names_in(directory));
        let own = registries.flat_map(|authority| certificates.of_host(&authority));
        let files = NAMES.iter().map(PathBuf::from).chain(certificates.shared().cloned()).chain(own);
        let directories = SERVICES.iter().map(PathBuf::from).collect();
        ClientFiles { files: files.collect(), directories, listed }
    }
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.take(MAX_REGISTRIES).filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::RegistryOptions;

    #[test]
    fn certificates_that_are_named_are_read() {
        let more = PathBuf::from("/certificates/own.pem");
        let client = Client::new(RegistryOptions { certificates: vec![more.clone()], ..Default::default() });
        let files = client.files();
        assert!(files.files.contains(&more), "{files:?}");
        assert!(files.files.contains(&PathBuf::from("/etc/resolv.conf")), "{files:?}");
        assert!(files.files.iter().all(|file| file.is_absolute()));
    }
}
