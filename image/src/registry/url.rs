//! URLs of registries.

use std::fmt;

use ureq::http::Uri;

/// An `http` or `https` URL without user information.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Url {
    is_secure: bool,
    /// The host, and a port where one is given.
    authority: String,
    /// The path and query, with a slash first.
    path: String,
}

impl Url {
    /// The URL of a path at a host.
    pub(super) fn new(is_secure: bool, authority: &str, path: &str) -> Self {
        Self { is_secure, authority: authority.to_owned(), path: path.to_owned() }
    }

    /// Reads an absolute URL.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let uri: Uri = text.parse().ok()?;
        let is_secure = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let authority = uri.authority()?.as_str();
        if authority.contains('@') || uri.host().is_none_or(str::is_empty) {
            return None;
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Some(Self { is_secure, authority: authority.to_ascii_lowercase(), path })
    }

    /// The URL that `location` means where this one is (RFC 3986, 5.2, without `..`).
    pub(super) fn join(&self, location: &str) -> Option<Self> {
        if location.starts_with("//") {
            let scheme = if self.is_secure { "https:" } else { "http:" };
            return Self::parse(&format!("{scheme}{location}"));
        }
        if location.starts_with('/') {
            return Self::parse(&format!("{}{location}", self.origin()));
        }
        if location.contains("://") {
            return Self::parse(location);
        }
        let path = self.path.split('?').next().unwrap_or_default();
        let directory = path.rfind('/').and_then(|slash| path.get(..=slash)).unwrap_or("/");
        Self::parse(&format!("{}{directory}{location}", self.origin()))
    }

    /// Adds a query's part, which is encoded already.
    pub(super) fn with_query(&self, query: &str) -> Self {
        let separator = if self.path.contains('?') { '&' } else { '?' };
        Self { path: format!("{}{separator}{query}", self.path), ..self.clone() }
    }

    pub(super) fn is_secure(&self) -> bool {
        self.is_secure
    }

    /// The host, and the port where it is given.
    pub(super) fn authority(&self) -> &str {
        &self.authority
    }

    pub(super) fn host(&self) -> &str {
        let authority = &self.authority;
        match authority.rfind(':').filter(|_| !authority.ends_with(']')) {
            Some(colon) => authority.get(..colon).unwrap_or_default(),
            None => authority,
        }
    }

    /// Whether this is the machine itself.
    pub(super) fn is_loopback(&self) -> bool {
        is_loopback(self.host())
    }

    /// Whether both have the same scheme, host and port.
    pub(super) fn has_origin_of(&self, other: &Self) -> bool {
        self.is_secure == other.is_secure && self.host() == other.host() && self.port() == other.port()
    }

    fn port(&self) -> &str {
        let default = if self.is_secure { "443" } else { "80" };
        let port = self.authority.get(self.host().len() + 1..);
        port.filter(|port| !port.is_empty()).unwrap_or(default)
    }

    fn origin(&self) -> String {
        format!("{}://{}", if self.is_secure { "https" } else { "http" }, self.authority)
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin(), self.path)
    }
}

/// Whether a host is the machine itself.
pub(super) fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Encodes a query's value.
pub(super) fn encode(value: &str) -> String {
    use fmt::Write as _;
    let mut encoded = String::new();
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(byte.into());
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("https://a/b/c?d", "/e?f", Some("https://a/e?f"))]
    #[case("https://a/b/c?d", "e", Some("https://a/b/e"))]
    #[case("https://a/b/c", "//x.y:1/z", Some("https://x.y:1/z"))]
    #[case("https://a/b/c", "http://[::1]:5/z", Some("http://[::1]:5/z"))]
    #[case("https://a/b", "file:///etc/passwd", None)]
    #[case("https://a/b", "https://user:secret@x/y", None)]
    #[case("https://a/b", "https:///y", None)]
    #[case("https://a/b", "/a\nb", None)]
    fn locations_are_joined(#[case] base: &str, #[case] location: &str, #[case] expected: Option<&str>) {
        let joined = Url::parse(base).unwrap().join(location).map(|url| url.to_string());
        assert_eq!(joined.as_deref(), expected);
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let is_same =
            |one: &str, other: &str| Url::parse(one).unwrap().has_origin_of(&Url::parse(other).unwrap());
        assert!(is_same("https://a/b", "https://A:443/c"));
        assert!(!is_same("https://a/b", "http://a/b"));
        assert!(!is_same("http://a:1/b", "http://a:2/b"));
        assert!(!is_same("https://a/b", "https://a.b/b"));
        assert!(is_same("http://[::1]:80/", "http://[::1]/"));
    }

    #[test]
    fn the_machine_itself_is_known() {
        assert!(["localhost", "127.0.0.1", "127.9.9.9", "[::1]"].iter().all(|host| is_loopback(host)));
        assert!(!["localhost.example", "128.0.0.1", "example", "[::2]"].iter().any(|host| is_loopback(host)));
    }
}
