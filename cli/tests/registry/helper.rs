//! Credential helpers.

use std::fs;

use crate::login::with_input;
use crate::place::{Place, text, write_executable};
use crate::server::{PASSWORD, Registry, USER, Wants};

/// Keeps credentials in files of its directory, and notes what it was run for.
const HELPER: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 1
echo "$1" >> calls
case $1 in
store)
    cat > entry
    ;;
get)
    read -r server
    grep -q "\"$server\"" entry 2>/dev/null || { echo "credentials not found in native keychain"; exit 1; }
    cat entry
    ;;
erase)
    rm entry
    ;;
esac
"#;

#[test]
fn a_helper_stores_gets_and_erases() {
    let registry = Registry::start(&Wants { basic: true, ..Wants::default() });
    let place = Place::new();
    registry.push(&place, &place.archive(&[5000]), "private/a:1", None);
    let image = format!("{}/private/a:1", registry.host);
    fs::create_dir(place.path("bin")).unwrap();
    write_executable(&place.path("bin/docker-credential-test"), HELPER);
    fs::create_dir(place.path("config")).unwrap();
    let path = format!("{}:{}", place.path("bin").display(), std::env::var("PATH").unwrap());
    let mvm = |arguments: &[&str]| {
        let mut command = place.mvm(arguments);
        command.env("PATH", &path).env("DOCKER_CONFIG", place.path("config"));
        command
    };
    let calls = || {
        let calls = fs::read_to_string(place.path("bin/calls")).unwrap_or_default();
        let _ = fs::remove_file(place.path("bin/calls"));
        calls.lines().collect::<Vec<_>>().join(" ")
    };
    let host = &registry.host;
    for config in
        ["{\"credsStore\": \"test\"}".to_owned(), format!("{{\"credHelpers\": {{\"{host}\": \"test\"}}}}")]
    {
        fs::write(place.path("config/config.json"), config).unwrap();
        let login = with_input(&mut mvm(&["login", "-u", USER, "--password-stdin", host]), PASSWORD);
        assert!(login.status.success() && !text(&login).contains("unencrypted"), "{}", text(&login));
        assert_eq!(calls(), "store");
        let entry = fs::read_to_string(place.path("bin/entry")).unwrap();
        let expected = format!(r#"{{"ServerURL":"{host}","Username":"{USER}","Secret":"{PASSWORD}"}}"#);
        assert_eq!(entry, expected);
        let written = fs::read_to_string(place.path("config/config.json")).unwrap();
        assert!(!written.contains("auth\"") && written.contains("\"test\""), "{written}");
        crate::place::succeeds(&mut mvm(&["pull", &image]));
        assert_eq!(calls(), "get");
        crate::place::succeeds(&mut mvm(&["logout", host]));
        assert_eq!(calls(), "get erase");
        assert!(crate::place::fails(&mut mvm(&["pull", &image]), 1).contains("mvm login"));
        assert_eq!(calls(), "get");
    }
    // One that does not work is no reason to send nothing.
    write_executable(&place.path("bin/docker-credential-test"), "#!/bin/sh\nexit 3\n");
    let error = crate::place::fails(&mut mvm(&["pull", &image]), 1);
    assert!(error.contains("docker-credential-test does not work: it ended with exit status: 3"), "{error}");
}
