//! Files of credentials.

use super::*;

fn files(text: &str) -> (tempfile::TempDir, CredentialFiles) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    std::fs::write(&path, text).unwrap();
    (directory, CredentialFiles::new(vec!["/nonexistent/auth.json".into(), path]))
}

#[test]
fn entries_are_found_by_their_registry() {
    let (_directory, files) = files(
        r#"{"auths": {"https://index.docker.io/v1/": {"auth": "aHViOnM6ZWNyZXQ="}, "quay.io": {"auth": "YTpi"},
            "localhost:5000": {"identitytoken": "token"}, "empty.io": {}, "bad.io": {"auth": "%"}}}"#,
    );
    let find = |registry| files.find(registry, "").unwrap().map(|found| (found.user, found.secret));
    let pair = |user: &str, secret: &str| Some((user.to_owned(), secret.to_owned()));
    assert_eq!(find("docker.io"), pair("hub", "s:ecret"));
    assert_eq!(find("quay.io"), pair("a", "b"));
    assert_eq!(find("localhost:5000"), pair("<token>", "token"));
    assert_eq!(find("localhost"), None);
    assert_eq!(find("empty.io"), None);
    assert_eq!(find("evil-quay.io"), None);
    assert!(files.find("bad.io", "").unwrap_err().to_string().contains("bad.io"));
}

#[test]
fn a_damaged_file_is_an_error_that_does_not_show_it() {
    let (_directory, files) = files(r#"{"auths": {"quay.io": {"auth": 'secret'}}}"#);
    let error = files.find("quay.io", "").unwrap_err().to_string();
    assert!(error.contains("config.json") && !error.contains("secret"), "{error}");
    let shown = format!("{:?}", Credentials { user: "a".into(), secret: "secret".into() });
    assert!(!shown.contains("secret"), "{shown}");
}

#[test]
fn a_helper_that_does_not_exist_is_named() {
    let (_directory, files) = files(r#"{"credHelpers": {"quay.io": "none-such", "gcr.io": "../../bin/sh"}}"#);
    assert!(files.find("quay.io", "").unwrap_err().to_string().contains("docker-credential-none-such"));
    assert!(files.find("gcr.io", "").unwrap_err().to_string().contains("not one of a program"));
    assert_eq!(files.find("other.io", "").unwrap(), None);
}

fn credentials(user: &str, secret: &str) -> Credentials {
    Credentials { user: user.into(), secret: secret.into() }
}

#[test]
fn a_file_is_written_in_one_step_and_keeps_what_others_wrote() {
    use std::os::unix::fs::PermissionsExt;
    let (directory, _) = files(
        r#"{"auths": {"https://quay.io": {"auth": "b2xkOm9sZA=="}, "quay.io/team": {"auth": "YTpi"}},
            "HttpHeaders": {"X": "y"}, "detachKeys": "ctrl-a", "number": 7}"#,
    );
    let path = directory.path().join("config.json");
    let link = directory.path().join("link.json");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let files = CredentialFiles::new(vec![link.clone()]);
    let stored = files.store("quay.io", &credentials("me", "s:ecret")).unwrap();
    assert_eq!(stored, StoredIn::File(link.clone()));
    assert!(link.symlink_metadata().unwrap().is_symlink());
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    files.store("docker.io", &credentials("<token>", "identity")).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let expected = json!({
        "auths": {
            "quay.io": {"auth": "bWU6czplY3JldA=="}, "quay.io/team": {"auth": "YTpi"},
            HUB: {"identitytoken": "identity"},
        },
        "HttpHeaders": {"X": "y"}, "detachKeys": "ctrl-a", "number": 7,
    });
    assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), expected);
    assert!(text.starts_with("{\n\t\"HttpHeaders\""), "{text}");
    assert_eq!(files.find("quay.io", "").unwrap(), Some(credentials("me", "s:ecret")));
    assert!(files.erase("docker.io").unwrap() && !files.erase("docker.io").unwrap());
    assert!(files.erase("quay.io").unwrap());
    assert_eq!(files.find("docker.io", "").unwrap(), None);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2, "nothing is left beside it");
}

#[test]
fn a_file_that_cannot_be_understood_is_not_replaced() {
    for text in ["{", "[]", r#"{"auths": []}"#, r#"{"auths": {"quay.io": 5}}"#] {
        let (directory, _) = files(text);
        let path = directory.path().join("config.json");
        let files = CredentialFiles::new(vec![path.clone()]);
        files.store("a.io", &credentials("a", "b")).unwrap_err();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }
    let files = CredentialFiles::new(vec!["/dev/null/config.json".into()]);
    let error = files.store("a.io", &credentials("a", "b")).unwrap_err().to_string();
    assert!(error.contains("/dev/null/config.json: cannot write it"), "{error}");
}

#[test]
fn the_entry_that_fits_a_repository_best_is_taken() {
    let (_directory, files) = files(
        r#"{"auths": {"quay.io/team": {"auth": "dGVhbTp4"}, "quay.io": {"auth": "YWxsOng="},
            "quay.io/team/tool": {"auth": "dG9vbDp4"}, "only.io/team": {"auth": "dGVhbTp4"}}}"#,
    );
    let find = |registry, repository| files.find(registry, repository).unwrap().map(|found| found.user);
    for (registry, repository, expected) in [
        ("quay.io", "", Some("all")),
        ("quay.io", "other/tool", Some("all")),
        ("quay.io", "teams/tool", Some("all")),
        ("quay.io", "team/other", Some("team")),
        ("quay.io", "team", Some("team")),
        ("quay.io", "team/tool", Some("tool")),
        ("only.io", "team/tool", Some("team")),
        ("only.io", "other", None),
        ("only.io", "", None),
    ] {
        assert_eq!(find(registry, repository).as_deref(), expected, "{registry}/{repository}");
    }
}
