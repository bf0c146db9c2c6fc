//! Credentials of registries: `config.json` of docker, `auth.json` of podman, and credential helpers.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::RegistryError;

/// Docker Hub's name in files of credentials.
const HUB: &str = "https://index.docker.io/v1/";
/// The most bytes of a file of credentials, and of what a helper says.
const MAX_FILE: u64 = 4 << 20;
/// How long a helper may take: it may ask the user.
const HELPER_TIME: Duration = Duration::from_secs(60);

/// A user's name and password, or a token that stands for both. They are never shown.
#[derive(Clone, PartialEq, Eq)]
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
    pub(super) fn is_token(&self) -> bool {
        self.user == "<token>"
    }

    /// The header `Authorization` of basic authentication (RFC 7617).
    pub(super) fn basic(&self) -> String {
        format!("Basic {}", STANDARD.encode(format!("{}:{}", self.user, self.secret)))
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

/// What a credential helper prints.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// The files that have credentials, in the order in which they are read: REGISTRY_AUTH_FILE alone where it is set, else
/// podman's `auth.json` and docker's `config.json`.
pub(super) fn files() -> Vec<PathBuf> {
    let path = |name: &str, rest: &str| {
        std::env::var_os(name).filter(|value| !value.is_empty()).map(|value| PathBuf::from(value).join(rest))
    };
    if let Some(file) = std::env::var_os("REGISTRY_AUTH_FILE") {
        return vec![file.into()];
    }
    let podman = path("XDG_RUNTIME_DIR", "containers/auth.json");
    let docker = path("DOCKER_CONFIG", "config.json").or_else(|| path("HOME", ".docker/config.json"));
    podman.into_iter().chain(docker).collect()
}

/// The credentials for a registry, if one of the files has some.
pub(super) fn find(files: &[PathBuf], registry: &str) -> Result<Option<Credentials>, RegistryError> {
    for path in files {
        let Ok(file) = File::open(path) else { continue };
        let mut text = Vec::new();
        let failed = |reason: String| RegistryError::CredentialsFile { path: path.clone(), reason };
        file.take(MAX_FILE).read_to_end(&mut text).map_err(|error| failed(error.to_string()))?;
        // The message of serde_json has no text of the file.
        let config: ConfigFile = serde_json::from_slice(&text).map_err(|error| failed(error.to_string()))?;
        if let Some(found) = config.find(registry, path)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

impl ConfigFile {
    fn find(&self, registry: &str, path: &Path) -> Result<Option<Credentials>, RegistryError> {
        let is_hub = registry == "docker.io";
        let server = if is_hub { HUB } else { registry };
        let helper = self.helpers.get(registry).or_else(|| self.helpers.get(server));
        if let Some(helper) = helper.or(self.store.as_ref())
            && let Some(found) = ask(helper, server)?
        {
            return Ok(Some(found));
        }
        let entry = self.auths.iter().find(|(key, _)| host_of(key) == registry);
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

/// The registry that a key of `auths` is for.
fn host_of(key: &str) -> &str {
    let host = key.trim_start_matches("https://").trim_start_matches("http://");
    match host.split('/').next().unwrap_or_default() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

/// Asks the helper `docker-credential-NAME`.
fn ask(name: &str, server: &str) -> Result<Option<Credentials>, RegistryError> {
    let failed = |reason: &str| RegistryError::Helper { name: name.to_owned(), reason: reason.to_owned() };
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return Err(failed("its name is not one of a program"));
    }
    let mut command = Command::new(format!("docker-credential-{name}"));
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| failed(&error.to_string()))?;
    if let Some(mut input) = child.stdin.take() {
        // It may end without reading.
        let _ = input.write_all(server.as_bytes());
    }
    let (sender, receiver) = mpsc::channel();
    let output = child.stdout.take();
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = output.map(|output| output.take(MAX_FILE).read_to_end(&mut text));
        let _ = sender.send(text);
    });
    let text = receiver.recv_timeout(HELPER_TIME);
    if text.is_err() {
        let _ = child.kill();
    }
    let status = child.wait().map_err(|error| failed(&error.to_string()))?;
    let text = text.map_err(|_| failed("it took longer than a minute"))?;
    if !status.success() {
        // By the protocol, this is how it says that it has none.
        let is_none = String::from_utf8_lossy(&text).contains("credentials not found");
        return if is_none { Ok(None) } else { Err(failed(&format!("it ended with {status}"))) };
    }
    let answer: HelperAnswer =
        serde_json::from_slice(&text).map_err(|_| failed("it does not say Username and Secret"))?;
    Ok(Some(Credentials { user: answer.username, secret: answer.secret }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> (tempfile::TempDir, Vec<PathBuf>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        (directory, vec![PathBuf::from("/nonexistent/auth.json"), path])
    }

    #[test]
    fn entries_are_found_by_their_registry() {
        let (_directory, files) = config(
            r#"{"auths": {"https://index.docker.io/v1/": {"auth": "aHViOnM6ZWNyZXQ="}, "quay.io": {"auth": "YTpi"},
                "localhost:5000": {"identitytoken": "token"}, "empty.io": {}, "bad.io": {"auth": "%"}}}"#,
        );
        let find = |registry| find(&files, registry).unwrap().map(|found| (found.user, found.secret));
        let pair = |user: &str, secret: &str| Some((user.to_owned(), secret.to_owned()));
        assert_eq!(find("docker.io"), pair("hub", "s:ecret"));
        assert_eq!(find("quay.io"), pair("a", "b"));
        assert_eq!(find("localhost:5000"), pair("<token>", "token"));
        assert_eq!(find("localhost"), None);
        assert_eq!(find("empty.io"), None);
        assert_eq!(find("evil-quay.io"), None);
        assert!(super::find(&files, "bad.io").unwrap_err().to_string().contains("bad.io"));
    }

    #[test]
    fn a_damaged_file_is_an_error_that_does_not_show_it() {
        let (_directory, files) = config(r#"{"auths": {"quay.io": {"auth": 'secret'}}}"#);
        let error = find(&files, "quay.io").unwrap_err().to_string();
        assert!(error.contains("config.json") && !error.contains("secret"), "{error}");
        let shown = format!("{:?}", Credentials { user: "a".into(), secret: "secret".into() });
        assert!(!shown.contains("secret"), "{shown}");
    }

    #[test]
    fn a_helper_that_does_not_exist_is_named() {
        let (_directory, files) =
            config(r#"{"credHelpers": {"quay.io": "none-such", "gcr.io": "../../bin/sh"}}"#);
        assert!(find(&files, "quay.io").unwrap_err().to_string().contains("docker-credential-none-such"));
        assert!(find(&files, "gcr.io").unwrap_err().to_string().contains("not one of a program"));
        assert_eq!(find(&files, "other.io").unwrap(), None);
    }
}
