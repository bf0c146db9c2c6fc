//! Authentication, and where credentials go.

use std::sync::Arc;

use super::fake::{Content, Fake, Reply, Seen};
use super::*;

fn known_as(user: &str, secret: &str) -> RegistryOptions {
    let credentials = Credentials { user: user.to_owned(), secret: secret.to_owned() };
    RegistryOptions { credentials: Some(Arc::new(credentials)), ..options() }
}

fn with_credentials() -> RegistryOptions {
    known_as("me", "secret")
}

/// `me:secret`.
const BASIC: &str = "Basic bWU6c2VjcmV0";

fn authorization(seen: &Seen) -> Option<&str> {
    seen.headers.get("authorization").map(String::as_str)
}

#[test]
fn basic_authentication() {
    let (_directory, store) = store();
    let content = Content::of(&fixture());
    let fake = Fake::new(move |seen| match authorization(seen) {
        Some(BASIC) => content.reply(seen),
        _ => Reply::new(401, "").header("www-authenticate", "Basic realm=\"x\""),
    });
    let name = reference(&fake.host, "a:1");
    store.pull(&Client::new(with_credentials()), &name, &()).unwrap();
    let denied = fake.seen().iter().filter(|seen| authorization(seen).is_none()).count();
    assert_eq!(denied, 1, "credentials that worked are used again");
    let error = store.pull(&client(), &name, &()).unwrap_err();
    let expected = format!("{0} denies access to a: check its name, and `mvm login {0}`", fake.host);
    assert_eq!(error.to_string(), expected);
}

#[test]
fn credentials_come_from_the_file_of_docker() {
    let (directory, store) = store();
    let content = Content::of(&fixture());
    let fake = Fake::new(move |seen| match authorization(seen) {
        Some(BASIC) => content.reply(seen),
        _ => Reply::new(401, "").header("www-authenticate", "Basic"),
    });
    let path = directory.path().join("config.json");
    let text = serde_json::json!({"auths": {&fake.host: {"auth": "bWU6c2VjcmV0"}}});
    fs::write(&path, text.to_string()).unwrap();
    let options =
        RegistryOptions { credentials: Some(Arc::new(CredentialFiles::new(vec![path]))), ..options() };
    store.pull(&Client::new(options), &reference(&fake.host, "a:1"), &()).unwrap();
}

#[test]
fn a_token_is_got_from_the_server_that_the_registry_names() {
    let (_directory, store) = store();
    let tokens = Arc::new(Fake::new(|_| Reply::new(200, r#"{"access_token": "abc", "expires_in": 60}"#)));
    let content = Content::of(&fixture());
    let realm = format!("Bearer realm=\"http://{}/token\",service=\"s p\"", tokens.host);
    let fake = Fake::new(move |seen| match authorization(seen) {
        Some("Bearer abc") => content.reply(seen),
        _ => Reply::new(401, "").header("www-authenticate", &realm),
    });
    store.pull(&Client::new(with_credentials()), &reference(&fake.host, "a:1"), &()).unwrap();
    let asked = tokens.seen();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].path, "/token?service=s%20p&scope=repository%3Aa%3Apull");
    assert_eq!(authorization(&asked[0]), Some(BASIC));
    assert!(fake.seen().iter().all(|seen| authorization(seen) != Some(BASIC)));
    // Without credentials it is anonymous; identity tokens are exchanged.
    let (_directory, store) = self::store();
    store.pull(&client(), &reference(&fake.host, "a:1"), &()).unwrap();
    assert_eq!(authorization(&tokens.seen()[1]), None);
    let client = Client::new(known_as("<token>", "identity"));
    store.pull(&client, &reference(&fake.host, "a:1"), &()).unwrap();
    assert_eq!((&*tokens.seen()[2].method, authorization(&tokens.seen()[2])), ("POST", None));
}

#[test]
fn a_token_server_that_sends_no_token_is_an_error() {
    for body in ["{}", "[", r#"{"token": ""}"#, r#"{"token": "a\r\nHost: evil"}"#] {
        let (_directory, store) = store();
        let tokens = Fake::new(move |_| Reply::new(200, body));
        let realm = format!("Bearer realm=\"http://{}/token\"", tokens.host);
        let fake = Fake::new(move |_| Reply::new(401, "").header("www-authenticate", &realm));
        let error = store.pull(&client(), &reference(&fake.host, "a:1"), &()).unwrap_err();
        assert!(error.to_string().contains("invalid answer"), "{error}");
    }
}

/// A registry that sends blobs elsewhere, as most do: there, nothing of the credentials arrives.
#[test]
fn credentials_do_not_follow_a_redirect_to_another_host() {
    let (_directory, store) = store();
    let content = Content::of(&fixture());
    let served = content.clone();
    let elsewhere = Arc::new(Fake::new(move |seen| served.reply(seen)));
    let host = elsewhere.host.clone();
    let fake = Fake::new(move |seen| match authorization(seen) {
        Some(BASIC) if seen.path.contains("/blobs/") => {
            Reply::new(307, "").header("location", format!("http://{host}{}", seen.path))
        }
        Some(BASIC) => content.reply(seen),
        _ => Reply::new(401, "").header("www-authenticate", "Basic"),
    });
    store.pull(&Client::new(with_credentials()), &reference(&fake.host, "a:1"), &()).unwrap();
    assert_eq!(elsewhere.blobs(), 3);
    for seen in elsewhere.seen() {
        let text = format!("{seen:?}");
        assert!(authorization(&seen).is_none() && !text.contains("secret"), "{text}");
    }
    is_whole(&store, &fixture());
}

/// The other host asks for credentials itself: they are not for it.
#[test]
fn credentials_are_not_given_to_who_asks_after_a_redirect() {
    let (_directory, store) = store();
    let thief = Arc::new(Fake::new(|_| Reply::new(401, "").header("www-authenticate", "Basic")));
    let host = thief.host.clone();
    let fake = Fake::new(move |seen| match &*seen.path {
        "/v2/" => Reply::new(200, ""),
        path => Reply::new(302, "").header("location", format!("http://{host}{path}")),
    });
    store.pull(&Client::new(with_credentials()), &reference(&fake.host, "a:1"), &()).unwrap_err();
    assert_eq!(thief.seen().len(), 1);
    assert!(authorization(&thief.seen()[0]).is_none());
}
