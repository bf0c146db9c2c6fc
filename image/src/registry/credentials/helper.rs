//! Credential helpers: the programs `docker-credential-NAME`, which are told on their standard input what to do it for.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Credentials, MAX_FILE};
use crate::registry::RegistryError;

/// How long a helper may take: it may ask the user.
const HELPER_TIME: Duration = Duration::from_secs(60);

/// What a helper prints, and is given to store.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    #[serde(default, rename = "ServerURL")]
    server: String,
    username: String,
    secret: String,
}

/// The credentials that the helper has for a server.
pub(super) fn get(name: &str, server: &str) -> Result<Option<Credentials>, RegistryError> {
    let Some(text) = run(name, "get", server.as_bytes())? else { return Ok(None) };
    let entry: Entry = serde_json::from_slice(&text)
        .map_err(|_| failed(name, "it does not say Username and Secret".to_owned()))?;
    Ok(Some(Credentials { user: entry.username, secret: entry.secret }))
}

/// Gives credentials to the helper.
pub(super) fn store(name: &str, server: &str, credentials: &Credentials) -> Result<(), RegistryError> {
    let Credentials { user, secret } = credentials.clone();
    let entry = Entry { server: server.to_owned(), username: user, secret };
    let text = serde_json::to_vec(&entry).map_err(|error| failed(name, error.to_string()))?;
    run(name, "store", &text).map(drop)
}

/// Has the helper forget a server's credentials.
pub(super) fn erase(name: &str, server: &str) -> Result<(), RegistryError> {
    run(name, "erase", server.as_bytes()).map(drop)
}

fn failed(name: &str, reason: String) -> RegistryError {
    RegistryError::Helper { name: name.to_owned(), reason }
}

/// Runs the helper, and returns what it prints; none where it says that it has no credentials.
fn run(name: &str, action: &str, input: &[u8]) -> Result<Option<Vec<u8>>, RegistryError> {
    let failed = |reason: String| failed(name, reason);
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return Err(failed("its name is not one of a program".to_owned()));
    }
    let mut command = Command::new(format!("docker-credential-{name}"));
    command.arg(action).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
    let (sender, receiver) = mpsc::channel();
    let (stdin, output, input) = (child.stdin.take(), child.stdout.take(), input.to_owned());
    std::thread::spawn(move || {
        // It may end without reading.
        let _ = stdin.map(|mut stdin| stdin.write_all(&input));
        let mut text = Vec::new();
        let _ = output.map(|output| output.take(MAX_FILE).read_to_end(&mut text));
        let _ = sender.send(text);
    });
    let text = receiver.recv_timeout(HELPER_TIME);
    if text.is_err() {
        let _ = child.kill();
    }
    let status = child.wait().map_err(|error| failed(error.to_string()))?;
    let text = text.map_err(|_| failed("it took longer than a minute".to_owned()))?;
    if status.success() {
        return Ok(Some(text));
    }
    // By the protocol, this is how it says that it has none.
    let is_none = String::from_utf8_lossy(&text).contains("credentials not found");
    if is_none { Ok(None) } else { Err(failed(format!("it ended with {status}"))) }
}
