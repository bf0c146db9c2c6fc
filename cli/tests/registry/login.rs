//! `mvm login` and `mvm logout`, beside skopeo's.

use std::fs;
use std::fs::File;
use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

use crate::place::{Place, run, succeeds, text};
use crate::server::{PASSWORD, Registry, USER, Wants};

/// Runs a command with this standard input.
pub fn with_input(command: &mut Command, input: &str) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It may end without reading.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

#[test]
fn credentials_are_checked_and_stored_as_docker_does() {
    let registry = Registry::start(&Wants { basic: true, ..Wants::default() });
    let place = Place::new();
    registry.push(&place, &place.archive(&[5000]), "private/a:1", None);
    let image = format!("{}/private/a:1", registry.host);
    assert!(place.fail(1, &["pull", &image]).contains(&format!("`mvm login {}`", registry.host)));
    let login = ["login", "-u", USER, "--password-stdin", &registry.host];
    let refused = with_input(&mut place.mvm(&login), "wrong");
    assert!(
        refused.status.code() == Some(1) && text(&refused).contains("refuses the user name"),
        "{}",
        text(&refused)
    );
    assert!(!place.path("home/.docker").exists());
    let output = with_input(&mut place.mvm(&login), &format!("{PASSWORD}\n"));
    assert!(output.status.success() && output.stdout == b"Login Succeeded\n", "{}", text(&output));
    let config = fs::read_to_string(place.path("home/.docker/config.json")).unwrap();
    let expected = "{\n\t\"auths\": {\n\t\t\"HOST\": {\n\t\t\t\"auth\": \"bWU6czplY3JldA==\"\n\t\t}\n\t}\n}";
    assert_eq!(config, expected.replace("HOST", &registry.host));
    place.succeed(&["pull", &image]);
    // Again, with what is stored.
    assert_eq!(place.succeed(&["login", &registry.host]), "Login Succeeded\n");
    place.succeed(&["tag", &image, &format!("{}/private/b:2", registry.host)]);
    place.succeed(&["push", &format!("{}/private/b:2", registry.host)]);
    // What mvm has written skopeo reads.
    let inspect = |place: &Place| {
        let mut skopeo = place.command("skopeo");
        skopeo.args([
            "inspect",
            "--raw",
            "--tls-verify=false",
            &format!("docker://{}/private/b:2", registry.host),
        ]);
        skopeo
    };
    run(&mut inspect(&place));
    let removing = format!("Removing login credentials for {}\n", registry.host);
    assert_eq!(place.succeed(&["logout", &registry.host]), removing);
    assert_eq!(place.succeed(&["logout", &registry.host]), format!("Not logged in to {}\n", registry.host));
    assert!(!inspect(&place).output().unwrap().status.success());
    place.fail(1, &["pull", &image]);
    // What skopeo has written mvm reads, and forgets.
    let mut skopeo = place.command("skopeo");
    run(skopeo.args(["login", "--tls-verify=false", "-u", USER, "-p", PASSWORD, &registry.host]));
    place.succeed(&["pull", &image]);
    assert_eq!(place.succeed(&["logout", &registry.host]), removing);
    place.fail(1, &["pull", &image]);
}

#[test]
fn what_cannot_be_a_login_is_said_in_one_line() {
    let place = Place::new();
    for (arguments, input, expected) in [
        (
            &["login", "localhost:1"][..],
            "",
            "standard input is no terminal: use -u NAME and --password-stdin",
        ),
        (&["login", "-u", "a", "localhost:1"], "", "use --password-stdin"),
        (&["login", "--password-stdin", "localhost:1"], "x", "no user name: use -u NAME"),
        (&["login", "-u", "a", "--password-stdin", "localhost:1"], "", "the password is empty"),
        (&["login", "-u", "", "--password-stdin", "localhost:1"], "x", "the user name is empty"),
        (&["login", "-u", "a:b", "--password-stdin", "localhost:1"], "x", "may not have a colon"),
        (&["login", "-u", "a", "--password-stdin", "quay"], "x", "invalid registry \"quay\""),
        (
            &["login", "-u", "a", "--password-stdin", "localhost:1"],
            "x",
            "cannot reach http://localhost:1/v2/",
        ),
        (&["logout", "a b"], "", "invalid registry \"a b\""),
    ] {
        let output = with_input(&mut place.mvm(arguments), input);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {errors}");
        assert!(errors.contains(expected) && errors.lines().count() == 1, "{arguments:?}: {errors}");
    }
    let both = place.mvm(&["login", "-p", "x", "--password-stdin"]).output().unwrap();
    assert!(
        both.status.code() == Some(2) && text(&both).contains("cannot be used together"),
        "{}",
        text(&both)
    );
    assert_eq!(succeeds(&mut place.mvm(&["logout"])), "Not logged in to docker.io\n");
}

/// What a user types on a terminal: the password is not shown, and the terminal is as before in the end.
#[test]
fn a_user_is_asked_on_a_terminal() {
    let registry = Registry::start(&Wants { basic: true, ..Wants::default() });
    let place = Place::new();
    for (typed, code) in [(format!("{PASSWORD}\r"), 0), ("x\x03".to_owned(), 1), ("wrong\r".to_owned(), 1)] {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).and_then(|()| unlockpt(&master)).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let line = open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        let mut mvm = place.mvm(&["login", &registry.host]);
        let end = || Stdio::from(line.try_clone().unwrap());
        let mut child = mvm.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let mut terminal = File::from(master);
        let mut shown = String::new();
        let mut wait_for = |terminal: &mut File, part: &str| {
            while !shown.contains(part) {
                let mut buffer = [0; 1024];
                let count = terminal.read(&mut buffer).unwrap();
                shown += std::str::from_utf8(&buffer[..count]).unwrap();
            }
            shown.clone()
        };
        wait_for(&mut terminal, &format!("User name for {}: ", registry.host));
        terminal.write_all(format!("{USER}\n").as_bytes()).unwrap();
        wait_for(&mut terminal, "Password: ");
        // It says so before it reads: what is typed earlier would be shown.
        while tcgetattr(&line).unwrap().local_modes.contains(LocalModes::ECHO) {
            std::thread::yield_now();
        }
        terminal.write_all(typed.as_bytes()).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(code));
        assert!(tcgetattr(&line).unwrap().local_modes.contains(LocalModes::ECHO | LocalModes::ICANON));
        let expected = match code {
            0 => "Login Succeeded",
            _ if typed.contains('w') => "refuses the user name or the password",
            _ => "no password was given",
        };
        let shown = wait_for(&mut terminal, expected);
        assert!(!shown.contains(PASSWORD) && !shown.contains("wrong"), "{shown}");
        fs::remove_dir_all(place.path("home/.docker")).unwrap_or_default();
    }
}
