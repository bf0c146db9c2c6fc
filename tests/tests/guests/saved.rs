//! Containers that are saved to disk, and go on later.

use std::process::Output;

use super::containers::{IMAGE, Stores, stores, text};
use super::forks::{COUNTS, Ends, check_clock, count, said};

fn refused(stores: &Stores, arguments: &[&str], expected: &str) {
    let Output { status, stderr, .. } = stores.mvm().args(arguments).output().unwrap();
    let line = text(&stderr);
    assert!(!status.success() && line.contains(expected), "{arguments:?}: {status}: {line}");
    assert_eq!(line.lines().count(), 1, "{arguments:?}: {line}");
}

fn status(stores: &Stores, container: &str) -> String {
    let filter = format!("name={container}");
    said(stores, &["ps", "-a", "--filter", &filter, "--format", "{{.State}} {{.Status}}"])
}

#[test]
fn a_container_that_is_saved_takes_no_process_and_goes_on_where_it_was() {
    let stores = stores();
    let _ends = Ends(stores, &["saved"]);
    let run = ["run", "-d", "--name", "saved", "-v", "kept:/data", "-m", "64m", IMAGE, "sh", "-c", COUNTS];
    said(stores, &run);
    said(stores, &["exec", "saved", "sh", "-c", "echo text >/file; echo more >/data/file"]);
    let mut before = count(stores, "saved");
    // Its limits are others by then than those that its VM was made by.
    said(stores, &["update", "-m", "32m", "saved"]);
    for round in 0..2 {
        assert_eq!(said(stores, &["pause", "--save", "saved"]), "saved\n");
        assert_eq!(status(stores, "saved"), "paused Saved\n");
        assert_eq!(said(stores, &["inspect", "-f", "{{.State.Paused}} {{.State.Pid}}", "saved"]), "true 0\n");
        if round == 0 {
            let saved = "it is saved: `mvm resume`";
            for arguments in [
                &["exec", "saved", "true"][..],
                &["start", "saved"],
                &["stop", "saved"],
                &["rm", "saved"],
                &["cp", "saved:/file", "-"],
                &["diff", "saved"],
                &["fork", "saved"],
                &["update", "-m", "48m", "saved"],
                &["pause", "--save", "saved"],
            ] {
                refused(stores, arguments, saved);
            }
            assert!(said(stores, &["logs", "saved"]).contains("begun"));
            said(stores, &["container", "prune", "-f"]);
        }
        assert_eq!(said(stores, &["resume", "saved"]), "saved\n");
        let now = count(stores, "saved");
        assert!(now > before, "{now} after {before}");
        before = now;
        check_clock(stores.mvm(), "saved");
        assert_eq!(said(stores, &["exec", "saved", "cat", "/file", "/data/file"]), "text\nmore\n");
        refused(stores, &["resume", "saved"], "it is not paused");
    }
    said(stores, &["stop", "-t", "20", "saved"]);
    assert_eq!(said(stores, &["wait", "saved"]), "7\n");
}

#[test]
fn what_was_saved_is_given_up_or_does_not_fit_the_disks_any_more() {
    let stores = stores();
    let _ends = Ends(stores, &["held", "other"]);
    let run =
        ["run", "-d", "--network", "none", "--name", "held", "-v", "shared:/data", IMAGE, "sleep", "1000"];
    said(stores, &run);
    said(stores, &["pause", "held"]);
    said(stores, &["pause", "--save", "held"]);
    // Another container writes to its volume.
    said(stores, &["run", "--rm", "--network", "none", "-v", "shared:/data", IMAGE, "touch", "/data/other"]);
    refused(stores, &["resume", "held"], "has changed since it was saved");
    assert_eq!(status(stores, "held"), "paused Saved\n");
    said(stores, &["kill", "held"]);
    assert!(status(stores, "held").starts_with("exited Exited (137)"));
    said(stores, &["start", "held"]);
    assert_eq!(said(stores, &["exec", "held", "ls", "/data"]), "other\n");
    said(stores, &["pause", "--save", "held"]);
    said(stores, &["rm", "-f", "held"]);
    let folder = format!("{}:/host", std::env::temp_dir().display());
    said(stores, &["run", "-d", "--name", "other", "-v", &folder, IMAGE, "sleep", "1000"]);
    let output = stores.mvm().args(["pause", "--save", "other"]).output().unwrap();
    assert!(!output.status.success(), "{}", text(&output.stdout));
    assert_eq!(text(&output.stderr).lines().count(), 1, "{}", text(&output.stderr));
    // It runs on.
    assert_eq!(said(stores, &["exec", "other", "echo", "on"]), "on\n");
}
