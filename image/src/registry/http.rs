//! HTTP for registries: connections, certificates, proxies, redirects, deadlines.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use ureq::http::{HeaderMap, Method, Request, Response, StatusCode};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};
use ureq::{Agent, Body, Proxy, SendBody};

use super::RegistryError;
use super::url::Url;

/// How many redirects may follow each other.
const MAX_REDIRECTS: usize = 5;
/// Where systems have the certificates that they trust.
const ROOTS: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// The most bytes of a file of certificates.
const MAX_ROOTS: u64 = 16 << 20;

/// How long to wait for a registry.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For a name to be resolved, and for a connection.
    pub connect: Duration,
    /// For a response to begin.
    pub response: Duration,
    /// For the next bytes of one.
    pub read: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            response: Duration::from_secs(60),
            read: Duration::from_secs(30),
        }
    }
}

/// Makes requests. Nothing is loaded or connected before the first one.
#[derive(Debug)]
pub(super) struct Http {
    timeouts: Timeouts,
    /// Certificates that are trusted besides the system's.
    certificates: Vec<PathBuf>,
    plain: OnceLock<Agent>,
    plain_by_proxy: OnceLock<Agent>,
    secure: OnceLock<Agent>,
    secure_by_proxy: OnceLock<Agent>,
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
}

impl<'a> Call<'a> {
    pub(super) fn new(method: Method, url: Url) -> Self {
        Self { method, url, headers: Vec::new(), authorization: None, payload: Payload::None }
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
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The body, of which each read has a deadline.
    pub(super) fn into_reader(self) -> impl Read {
        self.body.into_reader()
    }

    /// The whole body, of up to `most` bytes, within two minutes.
    pub(super) fn bounded(self, most: u64) -> Result<Vec<u8>, RegistryError> {
        let url = self.url.clone();
        let failed = |source: io::Error| RegistryError::Read { url: url.to_string(), source };
        let deadline = Instant::now() + Duration::from_secs(120);
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
    pub(super) fn new(timeouts: Timeouts, certificates: Vec<PathBuf>) -> Self {
        Self {
            timeouts,
            certificates,
            plain: OnceLock::new(),
            plain_by_proxy: OnceLock::new(),
            secure: OnceLock::new(),
            secure_by_proxy: OnceLock::new(),
        }
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
                return Ok(Answer { status: parts.status, headers: parts.headers, url, body });
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
        let agent = self.agent(url)?;
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

    /// The agent for this URL.
    fn agent(&self, url: &Url) -> Result<&Agent, RegistryError> {
        let proxy = proxy_of(url);
        let (place, is_secure) = match (url.is_secure(), proxy.is_some()) {
            (false, false) => (&self.plain, false),
            (false, true) => (&self.plain_by_proxy, false),
            (true, false) => (&self.secure, true),
            (true, true) => (&self.secure_by_proxy, true),
        };
        if let Some(agent) = place.get() {
            return Ok(agent);
        }
        use_static_resolver();
        let read = Some(self.timeouts.read);
        let mut config = Agent::config_builder()
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
            .timeout_per_write(read);
        if is_secure {
            let roots = RootCerts::new_with_certs(&self.roots()?);
            config = config
                .tls_config(TlsConfig::builder().provider(TlsProvider::Rustls).root_certs(roots).build());
        }
        Ok(place.get_or_init(|| Agent::new_with_config(config.build())))
    }

    /// The certificates that are trusted: of the file that SSL_CERT_FILE names or the system's, and those of the user.
    fn roots(&self) -> Result<Vec<Certificate<'static>>, RegistryError> {
        let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from).into_iter();
        let system = named.chain(ROOTS.iter().map(PathBuf::from)).find(|path| path.exists());
        let mut certificates = Vec::new();
        for path in system.iter().chain(&self.certificates) {
            let text =
                read_roots(path).map_err(|source| RegistryError::Roots { path: path.clone(), source })?;
            let items = parse_pem(&text).filter_map(Result::ok);
            certificates.extend(items.filter_map(|item| match item {
                PemItem::Certificate(certificate) => Some(certificate),
                _ => None,
            }));
        }
        if certificates.is_empty() { Err(RegistryError::NoRoots) } else { Ok(certificates) }
    }
}

fn read_roots(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    fs::File::open(path)?.take(MAX_ROOTS).read_to_end(&mut text)?;
    Ok(text)
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

/// A static program must not load the host's libraries to resolve names, as glibc does where `nsswitch.conf` has others
/// than `files` and `dns`: they are of another glibc.
#[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
fn use_static_resolver() {
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

#[cfg(not(all(target_env = "gnu", target_feature = "crt-static")))]
fn use_static_resolver() {}
