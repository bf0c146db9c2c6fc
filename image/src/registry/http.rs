//! HTTP for registries: connections, certificates, proxies, redirects, deadlines.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use ureq::config::ConfigBuilder;
use ureq::http::{HeaderMap, Method, Request, Response, StatusCode};
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};
use ureq::typestate::AgentScope;
use ureq::{Agent, Body, Proxy, SendBody};

use super::RegistryError;
use super::certificates::Certificates;
use super::url::Url;

/// How many redirects may follow each other.
const MAX_REDIRECTS: usize = 5;
/// How long to wait for a registry.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For a name to be resolved, and for a connection.
    pub connect: Duration,
    /// For a response to begin.
    pub response: Duration,
    /// For the next bytes of one.
    pub read: Duration,
    /// For all of a manifest, a configuration, or another answer that is not a blob.
    pub document: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            response: Duration::from_secs(60),
            read: Duration::from_secs(30),
            document: Duration::from_secs(120),
        }
    }
}

/// Makes requests. Nothing is loaded or connected before the first one.
#[derive(Debug)]
pub(super) struct Http {
    timeouts: Timeouts,
    certificates: Certificates,
    plain: OnceLock<Agent>,
    plain_by_proxy: OnceLock<Agent>,
    /// By their proxy, and the host where it has certificates of its own.
    secure: Mutex<HashMap<(bool, Option<String>), Agent>>,
}

/// What is sent with a request.
#[derive(Clone, Copy)]
pub(super) enum Payload<'a> {
    None,
    Bytes(&'a [u8]),
    /// A file from its beginning.
    File(&'a File),
}

/// A request.
#[derive(Clone)]
pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: Vec<(&'static str, String)>,
    /// The header `Authorization`, which is sent to the host of `url` alone.
    pub(super) authorization: Option<String>,
    pub(super) payload: Payload<'a>,
    /// The host whose own certificates are trusted for the request, wherever it leads to.
    pub(super) trusted: String,
}

impl<'a> Call<'a> {
    pub(super) fn new(method: Method, url: Url) -> Self {
        let trusted = url.authority().to_owned();
        Self { method, url, headers: Vec::new(), authorization: None, payload: Payload::None, trusted }
    }

    pub(super) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn payload(mut self, payload: Payload<'a>) -> Self {
        self.payload = payload;
        self
    }
}

/// A response, and where it came from in the end.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) url: Url,
    body: Body,
    /// How long all of it may take to come.
    time: Duration,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The body, of which each read has a deadline.
    pub(super) fn into_reader(self) -> impl Read {
        self.body.into_reader()
    }

    /// The whole body, of up to `most` bytes.
    pub(super) fn bounded(self, most: u64) -> Result<Vec<u8>, RegistryError> {
        let url = self.url.clone();
        let failed = |source: io::Error| RegistryError::Read { url: url.to_string(), source };
        let deadline = Instant::now() + self.time;
        let mut reader = self.body.into_reader().take(most + 1);
        let mut bytes = Vec::new();
        let mut buffer = vec![0; 32 << 10];
        loop {
            match reader.read(&mut buffer).map_err(&failed)? {
                0 => break,
                count => bytes.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            }
            if Instant::now() > deadline {
                return Err(failed(io::ErrorKind::TimedOut.into()));
            }
        }
        if u64::try_from(bytes.len()).is_ok_and(|length| length <= most) {
            return Ok(bytes);
        }
        Err(RegistryError::TooLarge { url: url.to_string(), most })
    }
}

impl Http {
    pub(super) fn new(timeouts: Timeouts, certificates: Certificates) -> Self {
        Self {
            timeouts,
            certificates,
            plain: OnceLock::new(),
            plain_by_proxy: OnceLock::new(),
            secure: Mutex::default(),
        }
    }

    /// The certificates that are trusted.
    pub(super) fn certificates(&self) -> &Certificates {
        &self.certificates
    }

    /// Makes a request, and follows redirects of those that only read. Credentials go to the first host and no other.
    pub(super) fn send(&self, call: &Call<'_>) -> Result<Answer, RegistryError> {
        let mut url = call.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let authorization = call.authorization.as_ref().filter(|_| url.has_origin_of(&call.url));
            let response = self.send_once(call, &url, authorization)?;
            let is_read = call.method == Method::GET || call.method == Method::HEAD;
            let location = response.headers().get("location").and_then(|value| value.to_str().ok());
            let next = location.filter(|_| is_read && response.status().is_redirection());
            let Some(location) = next else {
                let (parts, body) = response.into_parts();
                let time = self.timeouts.document;
                return Ok(Answer { status: parts.status, headers: parts.headers, url, body, time });
            };
            let target = url.join(location).ok_or_else(|| RegistryError::Redirect {
                url: url.to_string(),
                target: location.chars().take(200).collect(),
            })?;
            if url.is_secure() && !target.is_secure() {
                return Err(RegistryError::Redirect { url: url.to_string(), target: target.to_string() });
            }
            url = target;
        }
        Err(RegistryError::TooManyRedirects { url: call.url.to_string() })
    }

    fn send_once(
        &self,
        call: &Call<'_>,
        url: &Url,
        authorization: Option<&String>,
    ) -> Result<Response<Body>, RegistryError> {
        let failed = |source: ureq::Error| RegistryError::Request { url: url.to_string(), source };
        let mut request = Request::builder().method(call.method.clone()).uri(url.to_string());
        for (name, value) in &call.headers {
            request = request.header(*name, value);
        }
        if let Some(authorization) = authorization {
            request = request.header("authorization", authorization);
        }
        let agent = self.agent(url, &call.trusted)?;
        match call.payload {
            Payload::None => {
                request.body(SendBody::none()).map_err(Into::into).and_then(|call| agent.run(call))
            }
            Payload::Bytes(bytes) => request.body(bytes).map_err(Into::into).and_then(|call| agent.run(call)),
            Payload::File(file) => {
                use io::Seek as _;
                let mut file = file;
                file.rewind().map_err(|source| failed(source.into()))?;
                request.body(file).map_err(Into::into).and_then(|call| agent.run(call))
            }
        }
        .map_err(failed)
    }

    /// The agent for this URL, where the own certificates of `host` are trusted.
    fn agent(&self, url: &Url, host: &str) -> Result<Agent, RegistryError> {
        let proxy = proxy_of(url);
        if !url.is_secure() {
            let place = if proxy.is_some() { &self.plain_by_proxy } else { &self.plain };
            return Ok(place.get_or_init(|| Agent::new_with_config(self.config(proxy).build())).clone());
        }
        let own = self.certificates.of_host(host);
        let key = (proxy.is_some(), Some(host.to_owned()).filter(|_| !own.is_empty()));
        let mut agents = self.secure.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(agent) = agents.get(&key) {
            return Ok(agent.clone());
        }
        let roots = RootCerts::new_with_certs(&self.certificates.roots(&own)?);
        let tls = TlsConfig::builder().provider(TlsProvider::Rustls).root_certs(roots).build();
        let agent = Agent::new_with_config(self.config(proxy).tls_config(tls).build());
        agents.insert(key, agent.clone());
        Ok(agent)
    }

    fn config(&self, proxy: Option<Proxy>) -> ConfigBuilder<AgentScope> {
        use_own_resolver();
        let read = Some(self.timeouts.read);
        Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(proxy)
            .user_agent(concat!("mvm/", env!("CARGO_PKG_VERSION")))
            .max_response_header_size(64 << 10)
            .timeout_resolve(Some(self.timeouts.connect))
            .timeout_connect(Some(self.timeouts.connect))
            .timeout_recv_response(Some(self.timeouts.response))
            .timeout_per_read(read)
            .timeout_per_write(read)
    }
}

/// The proxy for a URL, from HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY. The machine itself needs none.
fn proxy_of(url: &Url) -> Option<Proxy> {
    let names: &[&str] = if url.is_secure() {
        &["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]
    } else {
        &["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"]
    };
    if url.is_loopback() {
        return None;
    }
    let value = names.iter().filter_map(|name| std::env::var(name).ok()).find(|value| !value.is_empty())?;
    // Only a proxy that was read from the environment knows NO_PROXY.
    let is_excluded = Proxy::try_from_env().is_some_and(|proxy| {
        url.to_string().parse().is_ok_and(|uri: ureq::http::Uri| proxy.is_no_proxy(&uri))
    });
    Proxy::new(&value).ok().filter(|_| !is_excluded)
}

/// Names are resolved by `files` and `dns`, which are parts of glibc, whatever else `nsswitch.conf` has: a static
/// program must not load the host's libraries, which are of another glibc, and one that is confined can't.
#[cfg(target_env = "gnu")]
fn use_own_resolver() {
    use std::ffi::{c_char, c_int};
    unsafe extern "C" {
        fn __nss_configure_lookup(database: *const c_char, line: *const c_char) -> c_int;
    }
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // SAFETY: both are strings that end with a zero, which the function copies; it takes glibc's own lock.
        unsafe { __nss_configure_lookup(c"hosts".as_ptr(), c"files dns".as_ptr()) };
    });
}

#[cfg(not(target_env = "gnu"))]
fn use_own_resolver() {}
