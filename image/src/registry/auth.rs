//! Authentication: basic, and tokens (docker's token authentication, and OAuth 2 for identity tokens).

use serde::Deserialize;
use ureq::http::{Method, StatusCode};

use super::credentials::Credentials;
use super::endpoint::Endpoint;
use super::http::{Answer, Call, Payload};
use super::url::{Url, encode};
use super::{Client, RegistryError};

/// The most bytes of a token server's answer.
const MAX_TOKEN: u64 = 1 << 20;

/// What a registry asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    refresh_token: Option<String>,
}

/// What a token is asked for.
pub(super) struct TokenRequest<'a> {
    pub(super) realm: &'a Url,
    pub(super) service: Option<&'a str>,
    /// What may be done with it; none for a login.
    pub(super) scope: Option<&'a str>,
    pub(super) credentials: Option<&'a Credentials>,
    /// Whether an identity token is wanted as well.
    pub(super) is_offline: bool,
}

/// What a token server gives.
pub(super) struct Token {
    pub(super) token: String,
    /// Stands for the credentials from now on.
    pub(super) identity: Option<String>,
}

impl Client {
    /// The header that worked before.
    pub(super) fn authorization(&self, endpoint: &Endpoint) -> Option<String> {
        let key = (endpoint.url("").to_string(), endpoint.scope());
        self.authorizations.lock().ok()?.get(&key).cloned()
    }

    /// The header that the registry asks for in `answer`.
    pub(super) fn authorize(&self, endpoint: &Endpoint, answer: &Answer) -> Result<String, RegistryError> {
        let challenge = Challenge::best(answer);
        let credentials = match &self.options.credentials {
            Some(source) => source.find(&endpoint.registry, &endpoint.repository)?,
            None => None,
        };
        let authorization = match &challenge {
            Some(Challenge::Bearer { realm, service, scope }) => {
                let realm = token_server(realm, answer)?;
                let scope = scope.clone().unwrap_or_else(|| endpoint.scope());
                let request = TokenRequest {
                    realm: &realm,
                    service: service.as_deref(),
                    scope: Some(&scope),
                    credentials: credentials.as_ref(),
                    is_offline: false,
                };
                let token = self.token(endpoint, &request)?.ok_or_else(|| endpoint.denied())?;
                format!("Bearer {}", token.token)
            }
            Some(Challenge::Basic) => {
                let usable = credentials.filter(|credentials| !credentials.is_token());
                usable.ok_or_else(|| endpoint.denied())?.basic()
            }
            None => return Err(endpoint.denied()),
        };
        if let Ok(mut known) = self.authorizations.lock() {
            known.insert((endpoint.url("").to_string(), endpoint.scope()), authorization.clone());
        }
        Ok(authorization)
    }

    /// A token, or none where the server refuses the credentials.
    pub(super) fn token(
        &self,
        endpoint: &Endpoint,
        request: &TokenRequest<'_>,
    ) -> Result<Option<Token>, RegistryError> {
        let &TokenRequest { realm, service, scope, credentials, is_offline } = request;
        let service = service.map(|service| format!("service={}", encode(service)));
        let scope = scope.map(|scope| format!("scope={}", encode(scope)));
        let mut query: Vec<String> = service.into_iter().chain(scope).collect();
        let form;
        let mut call = match credentials {
            Some(credentials) if credentials.is_token() => {
                let secret = encode(&credentials.secret);
                query.push(format!("grant_type=refresh_token&client_id=mvm&refresh_token={secret}"));
                form = query.join("&");
                Call::new(Method::POST, realm.clone())
                    .header("content-type", "application/x-www-form-urlencoded")
                    .payload(Payload::Bytes(form.as_bytes()))
            }
            _ => {
                if is_offline {
                    let user = credentials.map_or("", |credentials| &credentials.user);
                    query.push(format!("account={}&client_id=mvm&offline_token=true", encode(user)));
                }
                let url = if query.is_empty() { realm.clone() } else { realm.with_query(&query.join("&")) };
                let mut call = Call::new(Method::GET, url);
                call.authorization = credentials.map(Credentials::basic);
                call
            }
        };
        // As docker does: what is trusted for a registry is so for its token server.
        call.trusted = endpoint.base().authority().to_owned();
        let answer = self.http.send(&call)?;
        if matches!(answer.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Ok(None);
        }
        if answer.status != StatusCode::OK {
            return Err(endpoint.error(answer, "token"));
        }
        let url = answer.url.to_string();
        let invalid = |reason: &str| RegistryError::Invalid { url: url.clone(), reason: reason.to_owned() };
        let body = answer.bounded(MAX_TOKEN)?;
        let parsed: TokenAnswer = serde_json::from_slice(&body).map_err(|_| invalid("it is not a token"))?;
        let token = parsed.token.or(parsed.access_token).filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| invalid("it has no token"))?;
        let identity = parsed.refresh_token.filter(|token| !token.is_empty());
        let is_token = |token: &String| token.bytes().all(|byte| byte.is_ascii_graphic());
        if is_token(&token) && identity.iter().all(is_token) {
            Ok(Some(Token { token, identity }))
        } else {
            Err(invalid("it is not a token"))
        }
    }
}

/// The token server that a challenge names. It must be reached by HTTPS where the registry is.
pub(super) fn token_server(realm: &str, answer: &Answer) -> Result<Url, RegistryError> {
    let url = answer.url.to_string();
    match Url::parse(realm) {
        Some(realm) if answer.url.is_secure() && !realm.is_secure() => {
            Err(RegistryError::Redirect { url, target: realm.to_string() })
        }
        Some(realm) => Ok(realm),
        None => {
            let reason = "the token server is not a URL of http or https".to_owned();
            Err(RegistryError::Invalid { url, reason })
        }
    }
}

impl Challenge {
    /// What an answer asks for: a token rather than the credentials themselves.
    pub(super) fn best(answer: &Answer) -> Option<Self> {
        let headers = answer.headers.get_all("www-authenticate").iter();
        let mut all: Vec<Self> =
            headers.filter_map(|header| header.to_str().ok()).filter_map(Self::parse).collect();
        let bearer = all.iter().position(|challenge| *challenge != Self::Basic).unwrap_or(0);
        (bearer < all.len()).then(|| all.swap_remove(bearer))
    }

    /// Reads a header `WWW-Authenticate` (RFC 9110, 11.6.1) of one challenge.
    fn parse(header: &str) -> Option<Self> {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let parameters = parameters(rest);
        let get = |wanted: &str| {
            parameters
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
                .map(|(_, value)| value.clone())
        };
        Some(Self::Bearer { realm: get("realm")?, service: get("service"), scope: get("scope") })
    }
}

/// `name=value` and `name="value"`, with commas between.
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut parameters = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|char| *char == ',' || char.is_whitespace()).is_some() {}
        let mut name = String::new();
        while let Some(char) = chars.next_if(|char| !matches!(char, '=' | ',')) {
            name.push(char);
        }
        if chars.next_if_eq(&'=').is_none() {
            if chars.peek().is_none() {
                return parameters;
            }
            continue;
        }
        let mut value = String::new();
        if chars.next_if_eq(&'"').is_some() {
            while let Some(char) = chars.next().filter(|char| *char != '"') {
                // A backslash stands before any character.
                value.extend(if char == '\\' { chars.next() } else { Some(char) });
            }
        } else {
            while let Some(char) = chars.next_if(|char| *char != ',') {
                value.push(char);
            }
        }
        parameters.push((name.trim().to_owned(), value.trim().to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn challenges_are_read() {
        let header = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        assert_eq!(
            Challenge::parse(header),
            Some(Challenge::Bearer {
                realm: "https://auth.docker.io/token".to_owned(),
                service: Some("registry.docker.io".to_owned()),
                scope: Some("repository:a/b:pull,push".to_owned()),
            })
        );
        assert_eq!(Challenge::parse("Basic realm=\"x\""), Some(Challenge::Basic));
        assert_eq!(Challenge::parse("basic"), Some(Challenge::Basic));
        assert_eq!(Challenge::parse("Negotiate"), None);
        assert_eq!(Challenge::parse("Bearer service=x"), None);
        let plain = Challenge::parse(r#"bearer Realm=http://a/b , service="a\"b""#);
        let expected = Challenge::Bearer {
            realm: "http://a/b".to_owned(),
            service: Some("a\"b".to_owned()),
            scope: None,
        };
        assert_eq!(plain, Some(expected));
    }

    proptest! {
        #[test]
        fn any_header_is_read_or_not(header in "(Bearer )?[ -~]{0,80}") {
            let _ = Challenge::parse(&header);
        }
    }
}
