//! What containers have where a command does not say it: the files `/etc/mvm/config.toml` and `mvm/config.toml` of
//! `$XDG_CONFIG_HOME` or `~/.config`, whose keys are named as the options.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use container::{NetworkOption, Storage};
use instance::IdRange;
use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};
use vmm::MemorySize;

use crate::config_file::{self, ConfigFileError};
use crate::run::milli_cpus;
use crate::values::{list, text};
use crate::{chain, complain};

/// The file for all users.
const SYSTEM: &str = "/etc/mvm/config.toml";

/// Values of options.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Defaults {
    /// Thousandths of a processor.
    #[serde(deserialize_with = "cpus")]
    pub cpus: Option<u64>,
    /// Memory of a container.
    #[serde(deserialize_with = "text")]
    pub memory: Option<MemorySize>,
    /// What takes its changes.
    #[serde(deserialize_with = "text")]
    pub storage_opt: Option<Storage>,
    /// What it is connected to.
    #[serde(deserialize_with = "text")]
    pub network: Option<NetworkOption>,
    /// How its VM's process is confined.
    #[serde(deserialize_with = "text")]
    pub jail: Option<jail::Mode>,
    /// The users of whom root's VMs become one each.
    #[serde(deserialize_with = "text")]
    pub jail_ids: Option<IdRange>,
    /// When templates of containers' VMs are made and used.
    pub templates: Option<TemplateUse>,
    /// Registries that are asked before Docker Hub.
    #[serde(deserialize_with = "list")]
    pub registry_mirror: Vec<String>,
}

/// When templates of containers' VMs are made and used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TemplateUse {
    /// One is made in the background where a container finds none.
    Auto,
    /// Those of `mvm template build` are used.
    Manual,
    /// All VMs boot.
    Off,
}

/// Accepts a number of CPUs, with or without quotes.
fn cpus<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    struct Cpus;
    impl Visitor<'_> for Cpus {
        type Value = u64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a number, as in 1.5")
        }

        fn visit_i64<E: de::Error>(self, value: i64) -> Result<u64, E> {
            milli_cpus(&value.to_string()).map_err(E::custom)
        }

        fn visit_f64<E: de::Error>(self, value: f64) -> Result<u64, E> {
            milli_cpus(&value.to_string()).map_err(E::custom)
        }

        fn visit_str<E: de::Error>(self, value: &str) -> Result<u64, E> {
            milli_cpus(value).map_err(E::custom)
        }
    }
    deserializer.deserialize_any(Cpus).map(Some)
}

impl Defaults {
    /// Reads both files; what the user's own says goes first. A file that is not there says nothing.
    ///
    /// # Errors
    ///
    /// A line for the user.
    pub fn read() -> Result<Self, String> {
        let absolute =
            |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let own = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")));
        let system = read(Path::new(SYSTEM))?;
        match own {
            // HOME is that of another user, as with `su` and `setpriv`, and so is the file.
            Some(directory) if is_closed(&directory) => Ok(system),
            Some(directory) => Ok(read(&directory.join("mvm/config.toml"))?.or(system)),
            None => Ok(system),
        }
    }

    /// These, with those of `other` where these say nothing.
    fn or(self, other: Self) -> Self {
        Self {
            cpus: self.cpus.or(other.cpus),
            memory: self.memory.or(other.memory),
            storage_opt: self.storage_opt.or(other.storage_opt),
            network: self.network.or(other.network),
            jail: self.jail.or(other.jail),
            jail_ids: self.jail_ids.or(other.jail_ids),
            templates: self.templates.or(other.templates),
            registry_mirror: if self.registry_mirror.is_empty() {
                other.registry_mirror
            } else {
                self.registry_mirror
            },
        }
    }
}

/// Whether this user may not even look for a file in `directory`.
fn is_closed(directory: &Path) -> bool {
    let found = directory.join("mvm/config.toml").symlink_metadata();
    found.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

fn read(path: &Path) -> Result<Defaults, String> {
    match config_file::read_text(path) {
        Ok(text) => config_file::parse_as(&text, path).map_err(|error| chain(&error)),
        Err(ConfigFileError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(Defaults::default())
        }
        Err(error) => Err(chain(&error)),
    }
}

/// How processes are confined that work with images. A file that can't be used is no reason to confine them less.
pub fn jail() -> jail::Mode {
    Defaults::read().ok().and_then(|defaults| defaults.jail).unwrap_or_default()
}

/// The registries that are asked before Docker Hub, with commas between them. A file that can't be used is named, and
/// is no reason not to ask Docker Hub.
pub fn registry_mirrors() -> String {
    let defaults = Defaults::read().unwrap_or_else(|error| {
        complain(&error);
        Defaults::default()
    });
    defaults.registry_mirror.join(",")
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn parsed(text: &str) -> Result<Defaults, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        assert_eq!(read(&path), Ok(Defaults::default()), "there is no file");
        std::fs::write(&path, text).unwrap();
        read(&path)
    }

    #[test]
    fn keys_are_those_of_options_and_the_users_own_go_first() {
        let own = parsed("cpus = 1.5\nstorage-opt = 'size=5G'\nregistry-mirror = 'mirror.lan:5000'").unwrap();
        assert_eq!((own.cpus, own.storage_opt), (Some(1500), Some(Storage::Disk(5 << 30))));
        let system = parsed(
            "cpus = 2\nmemory = '512m'\nnetwork = 'none'\nregistry-mirror = ['a', 'b']\njail-ids = '5-9'",
        )
        .unwrap();
        assert_eq!(system.registry_mirror, ["a", "b"]);
        assert_eq!(system.jail_ids, "5-9".parse().ok());
        let both = own.or(system);
        assert_eq!((both.cpus, both.memory), (Some(1500), Some(MemorySize::from_mib(512))));
        assert_eq!(
            (both.network, both.registry_mirror),
            (Some(NetworkOption::None), vec!["mirror.lan:5000".into()])
        );
    }

    #[rstest]
    #[case("memroy = '1G'", "line 1: unknown key \"memroy\"; the keys are cpus, memory, ")]
    #[case("\ncpus = 0", "line 2: cpus: invalid number of CPUs \"0\"")]
    #[case("cpus = true", "line 1: cpus: invalid value (boolean true): write a number, as in 1.5")]
    #[case("memory = 512", "line 1: memory: write it in quotes, \"512\"")]
    #[case("storage-opt = '20G'", "line 1: storage-opt: invalid storage option \"20G\"")]
    #[case("network = 'host'", "line 1: network: network \"host\": each container's VM")]
    #[case("jail-ids = '0-9'", "line 1: jail-ids: invalid range of IDs 0-9: 0 is the ID of root")]
    #[case("jail-ids = '7-7'", "line 1: jail-ids: invalid range of IDs 7-7: use two or more")]
    #[case("jail-ids = 100000", "line 1: jail-ids: write it in quotes, \"100000\"")]
    #[case(
        "jail-ids = 'vms'",
        "line 1: jail-ids: invalid range of IDs \"vms\": write the first and the last"
    )]
    #[case("jail = 'on'", "line 1: jail: invalid jail mode \"on\": use off, best-effort, strict")]
    fn errors_name_the_line_and_the_key(#[case] text: &str, #[case] expected: &str) {
        let error = parsed(text).unwrap_err();
        assert!(error.contains(expected) && error.contains("config.toml"), "{error}");
    }
}
