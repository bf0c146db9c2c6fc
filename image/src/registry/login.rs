//! Checking a user's credentials.

use ureq::http::{Method, StatusCode};

use super::auth::{Challenge, TokenRequest, token_server};
use super::credentials::Credentials;
use super::endpoint::HUB;
use super::http::Call;
use super::{Client, RegistryError};
use crate::reference::Reference;

/// The registry that a user means by its name, with or without a scheme and a path; Docker Hub by none.
///
/// # Errors
///
/// A line that says what is wrong.
pub fn registry_of(server: Option<&str>) -> Result<String, String> {
    let Some(server) = server else { return Ok("docker.io".to_owned()) };
    let host = server.trim_start_matches("https://").trim_start_matches("http://");
    let host = host.split('/').next().unwrap_or_default();
    if matches!(host, "index.docker.io" | "registry-1.docker.io") {
        return Ok("docker.io".to_owned());
    }
    let is_host = !host.is_empty() && host.contains(['.', ':']) || host == "localhost";
    let reference = format!("{host}/x").parse::<Reference>().ok().filter(|_| is_host);
    let reference = reference.filter(|reference| reference.registry() == host);
    let invalid =
        || format!("invalid registry {server:?}: use a host and, where needed, a port, as in quay.io");
    reference.map(|reference| reference.registry().to_owned()).ok_or_else(invalid)
}

impl Client {
    /// Checks credentials with a registry. Returns the identity token that stands for them, if the registry gives one.
    ///
    /// # Errors
    ///
    /// [`RegistryError::Refused`] where they are wrong.
    pub fn login(&self, registry: &str, credentials: &Credentials) -> Result<Option<String>, RegistryError> {
        let host = if registry == "docker.io" { HUB } else { registry };
        let endpoint = self.endpoint_of(registry, host)?;
        let url = endpoint.base();
        let refused = || RegistryError::Refused { registry: registry.to_owned() };
        let answer = self.http.send(&Call::new(Method::GET, url.clone()))?;
        if answer.status != StatusCode::UNAUTHORIZED || !answer.url.has_origin_of(&url) {
            // It asks for no user.
            return if answer.status == StatusCode::OK {
                Ok(None)
            } else {
                Err(endpoint.error(answer, "registry"))
            };
        }
        let (authorization, identity) = match Challenge::best(&answer) {
            Some(Challenge::Basic) if !credentials.is_token() => (credentials.basic(), None),
            Some(Challenge::Bearer { realm, service, .. }) => {
                let request = TokenRequest {
                    realm: &token_server(&realm, &answer)?,
                    service: service.as_deref(),
                    scope: None,
                    credentials: Some(credentials),
                    is_offline: true,
                };
                let token = self.token(&endpoint, &request)?.ok_or_else(refused)?;
                (format!("Bearer {}", token.token), token.identity)
            }
            _ => return Err(refused()),
        };
        let mut call = Call::new(Method::GET, url);
        call.authorization = Some(authorization);
        let answer = self.http.send(&call)?;
        if matches!(answer.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Err(refused());
        }
        if answer.status == StatusCode::OK { Ok(identity) } else { Err(endpoint.error(answer, "registry")) }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(None, Some("docker.io"))]
    #[case(Some("docker.io"), Some("docker.io"))]
    #[case(Some("https://index.docker.io/v1/"), Some("docker.io"))]
    #[case(Some("https://quay.io/v2/"), Some("quay.io"))]
    #[case(Some("localhost:5000"), Some("localhost:5000"))]
    #[case(Some("localhost"), Some("localhost"))]
    #[case(Some("quay"), None)]
    #[case(Some(""), None)]
    #[case(Some("a b.io"), None)]
    #[case(Some("user@quay.io"), None)]
    fn servers_are_registries(#[case] server: Option<&str>, #[case] expected: Option<&str>) {
        assert_eq!(registry_of(server).ok().as_deref(), expected);
    }
}
