//! Credentials of registries: `config.json` of docker, `auth.json` of podman, and credential helpers.

mod file;
mod helper;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use serde_json::json;

use self::file::Document;
use super::RegistryError;

/// Docker Hub's name in files of credentials.
const HUB: &str = "https://index.docker.io/v1/";
/// The most bytes of a file of credentials, and of what a helper says.
const MAX_FILE: u64 = 4 << 20;

/// Who knows credentials.
pub trait CredentialSource: fmt::Debug + Send + Sync {
    /// The credentials for a repository of a registry, whose name is that which users give it, as `docker.io`. Without
    /// a repository's name they are for the registry.
    ///
    /// # Errors
    ///
    /// [`RegistryError::CredentialsFile`], [`RegistryError::Helper`], [`RegistryError::Credentials`].
    fn find(&self, registry: &str, repository: &str) -> Result<Option<Credentials>, RegistryError>;
}

/// A user's name and password, or a token that stands for both. They are never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// The user's name; `<token>` where `secret` is a token.
    pub user: String,
    /// The password or the token.
    pub secret: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Credentials {
    /// Whether `secret` is an identity token.
    pub fn is_token(&self) -> bool {
        self.user == "<token>"
    }

    fn encoded(&self) -> String {
        STANDARD.encode(format!("{}:{}", self.user, self.secret))
    }

    /// The header `Authorization` of basic authentication (RFC 7617).
    pub(super) fn basic(&self) -> String {
        format!("Basic {}", self.encoded())
    }
}

/// The same for every registry.
impl CredentialSource for Credentials {
    fn find(&self, _: &str, _: &str) -> Result<Option<Credentials>, RegistryError> {
        Ok(Some(self.clone()))
    }
}

#[derive(Default, Deserialize)]
struct ConfigFile {
    #[serde(default)]
    auths: HashMap<String, Entry>,
    #[serde(default, rename = "credHelpers")]
    helpers: HashMap<String, String>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
}

#[derive(Default, Deserialize)]
struct Entry {
    #[serde(default)]
    auth: Option<String>,
    #[serde(default, rename = "identitytoken")]
    identity_token: Option<String>,
}

/// Files of credentials, in the order in which they are read. The first one is written.
#[derive(Clone, Debug)]
pub struct CredentialFiles(Vec<PathBuf>);

/// Where credentials were stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredIn {
    /// This file, as good as unencrypted.
    File(PathBuf),
    /// The credential helper of this name.
    Helper(String),
}

impl CredentialFiles {
    /// These files.
    pub fn new(files: Vec<PathBuf>) -> Self {
        Self(files)
    }

    /// Those of this user: REGISTRY_AUTH_FILE alone where it is set, else docker's `config.json` and podman's
    /// `auth.json`.
    pub fn of_user() -> Self {
        let path = |name: &str, rest: &str| {
            let value = std::env::var_os(name).filter(|value| !value.is_empty());
            value.map(|value| PathBuf::from(value).join(rest))
        };
        if let Some(file) = path("REGISTRY_AUTH_FILE", "") {
            return Self(vec![file.components().collect()]);
        }
        let docker = path("DOCKER_CONFIG", "config.json").or_else(|| path("HOME", ".docker/config.json"));
        let podman = path("XDG_RUNTIME_DIR", "containers/auth.json").unwrap_or_else(|| {
            PathBuf::from(format!("/run/containers/{}/auth.json", rustix::process::getuid().as_raw()))
        });
        let kept = path("XDG_CONFIG_HOME", "containers/auth.json")
            .or_else(|| path("HOME", ".config/containers/auth.json"));
        Self(docker.into_iter().chain([podman]).chain(kept).collect())
    }

    /// Stores credentials for a registry in the first file, or gives them to the helper that it names.
    ///
    /// # Errors
    ///
    /// [`RegistryError::CredentialsFile`], [`RegistryError::Helper`].
    pub fn store(&self, registry: &str, credentials: &Credentials) -> Result<StoredIn, RegistryError> {
        let path = self.written()?;
        let server = server_of(registry);
        let mut document = Document::open(path)?;
        let Some(helper) = config(path)?.helper(registry) else {
            let entry = if credentials.is_token() {
                json!({"identitytoken": credentials.secret})
            } else {
                json!({"auth": credentials.encoded()})
            };
            document.set(server, entry)?;
            document.write()?;
            return Ok(StoredIn::File(path.to_owned()));
        };
        helper::store(&helper, server, credentials)?;
        // As docker does: an empty entry says that the helper has one.
        document.set(server, json!({}))?;
        document.write()?;
        Ok(StoredIn::Helper(helper))
    }

    /// Removes the credentials for a registry from all files and their helpers. Returns whether there were some.
    ///
    /// # Errors
    ///
    /// [`RegistryError::CredentialsFile`], [`RegistryError::Helper`].
    pub fn erase(&self, registry: &str) -> Result<bool, RegistryError> {
        let server = server_of(registry);
        let mut had_some = false;
        for path in &self.0 {
            if read(path)?.is_none() {
                continue;
            }
            if let Some(helper) = config(path)?.helper(registry)
                && helper::get(&helper, server)?.is_some()
            {
                helper::erase(&helper, server)?;
                had_some = true;
            }
            let mut document = Document::open(path)?;
            if document.remove(server)? {
                document.write()?;
                had_some = true;
            }
        }
        Ok(had_some)
    }

    fn written(&self) -> Result<&Path, RegistryError> {
        let none = || RegistryError::Credentials("set HOME, DOCKER_CONFIG or REGISTRY_AUTH_FILE".to_owned());
        self.0.first().map(PathBuf::as_path).ok_or_else(none)
    }
}

impl CredentialSource for CredentialFiles {
    fn find(&self, registry: &str, repository: &str) -> Result<Option<Credentials>, RegistryError> {
        for path in &self.0 {
            if let Some(found) = config(path)?.find(registry, repository, path)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

/// A file's bytes, if it exists and there are some.
fn read(path: &Path) -> Result<Option<Vec<u8>>, RegistryError> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let Ok(file) = File::options().read(true).custom_flags(flags).open(path) else { return Ok(None) };
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Ok(None);
    }
    let mut text = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut text).map_err(|error| RegistryError::CredentialsFile {
        path: path.to_owned(),
        reason: error.to_string(),
    })?;
    // As docker takes an empty file.
    Ok(Some(text).filter(|text| !text.trim_ascii().is_empty()))
}

fn config(path: &Path) -> Result<ConfigFile, RegistryError> {
    let Some(text) = read(path)? else { return Ok(ConfigFile::default()) };
    // The message of serde_json has no text of the file.
    serde_json::from_slice(&text)
        .map_err(|error| RegistryError::CredentialsFile { path: path.to_owned(), reason: error.to_string() })
}

/// The key of a registry in files of credentials.
fn server_of(registry: &str) -> &str {
    if registry == "docker.io" { HUB } else { registry }
}

impl ConfigFile {
    /// The helper that has a registry's credentials.
    fn helper(&self, registry: &str) -> Option<String> {
        let of_registry = self.helpers.get(registry).or_else(|| self.helpers.get(server_of(registry)));
        of_registry.or(self.store.as_ref()).filter(|name| !name.is_empty()).cloned()
    }

    fn find(
        &self,
        registry: &str,
        repository: &str,
        path: &Path,
    ) -> Result<Option<Credentials>, RegistryError> {
        if let Some(helper) = self.helper(registry)
            && let Some(found) = helper::get(&helper, server_of(registry))?
        {
            return Ok(Some(found));
        }
        let fitting = self.auths.iter().filter_map(|(key, entry)| {
            // The same for each run, where several fit as well.
            let fit = (fit(key, registry, repository)?, key == server_of(registry), key);
            Some((fit, entry))
        });
        let entry = fitting.max_by_key(|(fit, _)| *fit);
        let Some((_, entry)) = entry else { return Ok(None) };
        if let Some(token) = entry.identity_token.as_ref().filter(|token| !token.is_empty()) {
            return Ok(Some(Credentials { user: "<token>".to_owned(), secret: token.clone() }));
        }
        let Some(auth) = entry.auth.as_ref().filter(|auth| !auth.is_empty()) else { return Ok(None) };
        let decoded =
            STANDARD.decode(auth.trim_end_matches('\0')).ok().and_then(|text| String::from_utf8(text).ok());
        let pair = decoded.as_ref().and_then(|text| text.split_once(':'));
        let (user, secret) = pair.ok_or_else(|| RegistryError::CredentialsFile {
            path: path.to_owned(),
            reason: format!("the entry of {registry} is not the base64 of USER:PASSWORD"),
        })?;
        Ok(Some(Credentials { user: user.to_owned(), secret: secret.to_owned() }))
    }
}

/// The registry that a key of `auths` is for, and the part of it that podman's keys may name, as in `quay.io/team`.
fn parts_of(key: &str) -> (&str, &str) {
    let key = key.trim_start_matches("https://").trim_start_matches("http://");
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let host = if matches!(host, "index.docker.io" | "registry-1.docker.io") { "docker.io" } else { host };
    match path.trim_end_matches('/') {
        "v1" | "v2" => (host, ""),
        path => (host, path),
    }
}

/// How well a key of `auths` fits a repository: by how many bytes of its name.
fn fit(key: &str, registry: &str, repository: &str) -> Option<usize> {
    let (host, path) = parts_of(key);
    let rest = repository.strip_prefix(path)?;
    let is_whole = path.is_empty() || rest.is_empty() || rest.starts_with('/');
    (host == registry && is_whole).then_some(path.len())
}
