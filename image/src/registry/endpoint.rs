//! A repository at a registry, and requests to it.

use serde::Deserialize;
use ureq::http::{Method, StatusCode};

use super::http::{Answer, Call};
use super::url::{Url, is_loopback};
use super::{Client, RegistryError};
use crate::reference::Reference;

/// What Docker Hub's registry is.
pub(super) const HUB: &str = "registry-1.docker.io";
/// The most bytes of an error's text.
const MAX_ERROR: u64 = 64 << 10;

/// A repository at one host.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    /// As users name the registry, for credentials and messages.
    pub(super) registry: String,
    pub(super) repository: String,
    host: String,
    is_secure: bool,
    /// What may be done: `pull` or `pull,push`.
    actions: &'static str,
}

#[derive(Deserialize)]
struct Errors {
    #[serde(default)]
    errors: Vec<ErrorText>,
}

#[derive(Deserialize)]
struct ErrorText {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

impl Endpoint {
    /// The URL of what follows the repository's name.
    pub(super) fn url(&self, rest: &str) -> Url {
        Url::new(self.is_secure, &self.host, &format!("/v2/{}/{rest}", self.repository))
    }

    /// The URL by which a registry says that it is one.
    pub(super) fn base(&self) -> Url {
        Url::new(self.is_secure, &self.host, "/v2/")
    }

    /// What a token is asked for.
    pub(super) fn scope(&self) -> String {
        format!("repository:{}:{}", self.repository, self.actions)
    }
}

impl Client {
    /// Where a reference is pulled from: mirrors first.
    pub(super) fn sources(&self, reference: &Reference) -> Vec<(String, String)> {
        let registry = reference.registry().to_owned();
        let mirrors = self.options.mirrors.iter().filter(|mirror| mirror.of == registry);
        let mut hosts: Vec<(String, String)> =
            mirrors.map(|mirror| (mirror.host.clone(), mirror.host.clone())).collect();
        let host = if registry == "docker.io" { HUB.to_owned() } else { registry.clone() };
        hosts.push((registry, host));
        hosts
    }

    /// The repository of `reference` at a host.
    pub(super) fn endpoint(
        &self,
        reference: &Reference,
        (registry, host): &(String, String),
        actions: &'static str,
    ) -> Result<Endpoint, RegistryError> {
        Ok(Endpoint {
            registry: registry.clone(),
            repository: reference.repository().to_owned(),
            host: host.clone(),
            is_secure: self.is_secure(host)?,
            actions,
        })
    }

    /// A registry itself, without a repository.
    pub(super) fn endpoint_of(&self, registry: &str, host: &str) -> Result<Endpoint, RegistryError> {
        Ok(Endpoint {
            registry: registry.to_owned(),
            repository: String::new(),
            host: host.to_owned(),
            is_secure: self.is_secure(host)?,
            actions: "",
        })
    }

    /// Whether HTTPS is used. A registry on this machine may want either, so it is asked.
    fn is_secure(&self, host: &str) -> Result<bool, RegistryError> {
        if self.options.plain_http {
            return Ok(false);
        }
        let url = Url::new(false, host, "/v2/");
        if !is_loopback(url.host()) {
            return Ok(true);
        }
        let known = self.secure.lock().ok().and_then(|known| known.get(host).copied());
        if let Some(is_secure) = known {
            return Ok(is_secure);
        }
        // Servers of HTTPS answer plain requests with this status, or not at all.
        let is_secure = match self.http.send(&Call::new(Method::GET, url)) {
            Ok(answer) => answer.status == StatusCode::BAD_REQUEST,
            Err(RegistryError::Request { source: ureq::Error::Protocol(_), .. }) => true,
            Err(error) => return Err(error),
        };
        if let Ok(mut known) = self.secure.lock() {
            known.insert(host.to_owned(), is_secure);
        }
        Ok(is_secure)
    }

    /// Makes a request, with authentication where the registry wants it. Any status but 401 is an answer.
    pub(super) fn call(&self, endpoint: &Endpoint, mut call: Call<'_>) -> Result<Answer, RegistryError> {
        // What a registry names elsewhere, as a place for uploads, gets no credentials.
        if !call.url.has_origin_of(&endpoint.url("")) {
            return self.http.send(&call);
        }
        call.authorization = self.authorization(endpoint);
        let answer = self.http.send(&call)?;
        if answer.status != StatusCode::UNAUTHORIZED || !answer.url.has_origin_of(&call.url) {
            return Ok(answer);
        }
        call.authorization = Some(self.authorize(endpoint, &answer)?);
        let answer = self.http.send(&call)?;
        if answer.status == StatusCode::UNAUTHORIZED {
            return Err(endpoint.denied());
        }
        Ok(answer)
    }
}

impl Endpoint {
    pub(super) fn denied(&self) -> RegistryError {
        RegistryError::Denied { registry: self.registry.clone(), what: self.repository.clone() }
    }

    /// The error that an answer of another status than the expected one is.
    pub(super) fn error(&self, answer: Answer, what: &str) -> RegistryError {
        let status = answer.status;
        match status {
            StatusCode::NOT_FOUND => {
                let hint = if self.registry == "docker.io" { "" } else { ", and that of the registry" };
                RegistryError::NotFound { what: what.to_owned(), registry: self.registry.clone(), hint }
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.denied(),
            _ => {
                let url = answer.url.to_string();
                let text = answer.bounded(MAX_ERROR).unwrap_or_default();
                RegistryError::Status { url, status: status.as_u16(), message: message(&text) }
            }
        }
    }
}

/// What an error's body says, on one line of printable text.
fn message(body: &[u8]) -> String {
    let errors: Option<Errors> = serde_json::from_slice(body).ok();
    let first = errors.and_then(|errors| errors.errors.into_iter().next());
    let Some(ErrorText { code, message }) = first else { return String::new() };
    let text = if message.is_empty() { code } else { message };
    let text: String = text.chars().filter(|char| !char.is_control()).take(200).collect();
    if text.is_empty() { text } else { format!(": {text}") }
}
