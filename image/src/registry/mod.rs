//! The client of registries (OCI distribution specification, and docker's registry version 2).
//!
//! A registry is not trusted: bodies are bounded, each wait has a deadline, content is verified by its digest before it
//! is used, and credentials go to the registry's own host and to the token server that it names, never along a redirect
//! to another one.

mod auth;
mod certificates;
mod credentials;
mod download;
mod endpoint;
mod files;
mod http;
mod login;
mod pull;
mod push;
#[cfg(test)]
mod tests;
mod url;

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::digest::Digest;
use crate::documents::DocumentError;
use crate::store::{InvalidConfig, StoreError};

pub use credentials::{CredentialFiles, CredentialSource, Credentials, StoredIn};
pub use files::ClientFiles;
pub use http::Timeouts;
pub use login::registry_of;
pub use pull::{Progress, PullEvent, Pulled};

use certificates::Certificates;
use http::Http;

/// How to reach registries.
#[derive(Clone, Debug, Default)]
pub struct RegistryOptions {
    /// Uses plain HTTP. Registries on this machine are tried so anyway.
    pub plain_http: bool,
    /// Certificates (PEM) that are trusted besides the system's.
    pub certificates: Vec<PathBuf>,
    /// Who is asked for the credentials of a registry that wants some.
    pub credentials: Option<Arc<dyn CredentialSource>>,
    /// Registries that are asked before another one when an image is pulled.
    pub mirrors: Vec<Mirror>,
    /// How long to wait.
    pub timeouts: Timeouts,
}

/// A registry that has what another one has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mirror {
    /// Whose images it has, as `docker.io`.
    pub of: String,
    /// Its host, with a port where needed. A loopback one is reached by plain HTTP.
    pub host: String,
}

/// A client of registries. It connects, and loads certificates, when it has to.
#[derive(Debug)]
pub struct Client {
    options: RegistryOptions,
    http: Http,
    /// The header `Authorization` for an origin and a scope.
    authorizations: Mutex<HashMap<(String, String), String>>,
    /// Whether a registry on this machine is reached by HTTPS.
    secure: Mutex<HashMap<String, bool>>,
}

impl Client {
    /// A client with these options. Nothing is read or connected yet.
    pub fn new(options: RegistryOptions) -> Self {
        let http = Http::new(options.timeouts, Certificates::new(options.certificates.clone()));
        Self { options, http, authorizations: Mutex::default(), secure: Mutex::default() }
    }
}

/// Why a registry can't be used, or does not do what was asked.
#[derive(Debug, Error)]
pub enum RegistryError {
    /// No connection, or none of HTTP.
    #[error("cannot reach {url}")]
    Request {
        /// What was asked for.
        url: String,
        /// What went wrong.
        #[source]
        source: ureq::Error,
    },
    /// A response that ends early, or takes too long.
    #[error("cannot read the answer of {url}")]
    Read {
        /// What was asked for.
        url: String,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// A response that is longer than it may be.
    #[error("the answer of {url} has more than {most} bytes")]
    TooLarge {
        /// What was asked for.
        url: String,
        /// How many there may be.
        most: u64,
    },
    /// A blob of another length.
    #[error("{url} sent more than the {size} bytes that the manifest announces")]
    TooLong {
        /// What was asked for.
        url: String,
        /// What the manifest says.
        size: u64,
    },
    /// A redirect that is not followed.
    #[error(
        "{url} redirects to {target:?}, which is not followed: it is not an http or https URL, or not encrypted"
    )]
    Redirect {
        /// What was asked for.
        url: String,
        /// Where it leads.
        target: String,
    },
    /// A loop of redirects.
    #[error("{url} redirects too often")]
    TooManyRedirects {
        /// What was asked for.
        url: String,
    },
    /// The image does not exist there.
    #[error("there is no {what} at {registry}: check its name and tag{hint}")]
    NotFound {
        /// What there is none of.
        what: String,
        /// The registry.
        registry: String,
        /// What else may help.
        hint: &'static str,
    },
    /// The registry wants other credentials, or some.
    #[error("{registry} denies access to {what}: check its name, and `mvm login {registry}`")]
    Denied {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
    },
    /// The registry does not take a user's credentials.
    #[error("{registry} refuses the user name or the password")]
    Refused {
        /// The registry.
        registry: String,
    },
    /// Another status.
    #[error("{url} answers with status {status}{message}")]
    Status {
        /// What was asked for.
        url: String,
        /// The status.
        status: u16,
        /// What the registry says, after a colon.
        message: String,
    },
    /// A response that is not as the specification has it.
    #[error("{url} sent an invalid answer: {reason}")]
    Invalid {
        /// What was asked for.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// No trusted certificates.
    #[error("this machine has no CA certificates: install ca-certificates, or set SSL_CERT_FILE")]
    NoRoots,
    /// Certificates that can't be read.
    #[error("cannot read the certificates in {}", path.display())]
    Roots {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A file of credentials that can't be understood.
    #[error("cannot read the credentials in {}: {reason}", path.display())]
    CredentialsFile {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A credential helper that does not work.
    #[error("docker-credential-{name} does not work: {reason}; it is set in docker's config.json")]
    Helper {
        /// Its name.
        name: String,
        /// Why.
        reason: String,
    },
    /// No credentials can be had.
    #[error("cannot get credentials: {0}")]
    Credentials(String),
    /// A manifest or an index.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// A configuration.
    #[error("invalid image configuration {id}")]
    Config {
        /// Its digest.
        id: Digest,
        /// What is wrong with it.
        #[source]
        source: InvalidConfig,
    },
    /// The store, or a layer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The pull was given up since another layer failed.
    #[error("the pull was given up")]
    GivenUp,
}
