//! Containers that are made and started by different commands, as far as they have no VM yet.

#![allow(missing_docs, reason = "tests are named after what they show")]
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

mod tiny_image;

use std::fs;

use tiny_image::Host;

#[test]
fn one_that_is_created_is_listed_and_kept_and_removed() {
    let host = Host::new();
    let options = ["-e", "SECRET=1", "-p", "127.0.0.1::80", "--network", "user"];
    let id = host.said(&[&["create", "--name", "web"], &options[..], &["tiny", "echo", "a"]].concat());
    assert!(id.len() == 12, "{id}");
    assert_eq!(host.said(&["ps", "-q"]), "");
    let form = "{{.ID}} {{.Names}} {{.State}} {{.Status}} {{.Command}} {{.Ports}}";
    let listed = host.said(&["ps", "-a", "--filter", "status=created", "--format", form]);
    assert_eq!(listed, format!("{id} web created Created \"echo a\""));
    let state = "{{.State.Status}} {{.State.Running}} {{.State.ExitCode}} {{.Config.Image}}";
    assert_eq!(host.said(&["inspect", "-f", state, "web"]), "created false 0 tiny");
    assert_eq!(host.said(&["wait", "web"]), "0");
    assert_eq!(host.said(&["stop", "web"]), "web");
    for (arguments, says) in [
        (&["kill", "web"][..], "`mvm start` starts it"),
        (&["exec", "web", "true"], "`mvm start` starts it"),
        (&["create", "--name", "web", "tiny"], "the name web is in use by"),
        (&["rmi", "tiny"], "conflict: a container uses image tiny: `mvm rm` the container first"),
    ] {
        let (_, said) = host.fails(arguments);
        assert!(said.contains(says), "{arguments:?}: {said}");
    }
    // A name does not keep an image, and a container does.
    assert!(host.said(&["rmi", "-f", "tiny"]).starts_with("Untagged: "));
    assert_eq!(host.said(&["image", "prune", "-f", "--all"]), "Total reclaimed space: 0B");
    assert_eq!(
        host.said(&["system", "df", "--format", "{{.Type}} {{.TotalCount}} {{.Active}}"])
            .lines()
            .take(2)
            .collect::<Vec<_>>(),
        ["Images 1 1", "Containers 1 0"]
    );
    assert_eq!(host.said(&["rm", "web"]), "web");
    assert!(host.said(&["image", "prune", "-f"]).contains("deleted: sha256:"));
}

#[test]
fn one_that_can_not_start_says_why_and_stays() {
    let host = Host::new();
    let id = host.said(&["create", "--name", "web", "--network", "none", "tiny"]);
    // It has written nothing yet.
    assert_eq!(host.said(&["logs", "-f", "web"]), "");
    assert_eq!(host.said(&["logs", "--tail", "-1", "web"]), "");
    let (code, said) = host.fails(&["start", "web"]);
    assert!(code == Some(1) && said.contains("web: "), "{said}");
    let state = "{{.State.Status}} {{.State.ExitCode}} {{ne .State.Error \"\"}}";
    assert_eq!(host.said(&["inspect", "-f", state, "web"]), "exited 125 true");
    // Of one that no command could have seen, nothing is left.
    host.fails(&["run", "-d", "--network", "none", "tiny"]);
    assert_eq!(host.said(&["ps", "-aq"]), id);
    assert_eq!(host.said(&["ps", "-aq", "--no-trunc"]), id);
    assert_eq!(host.mvm(&["start", "web", "nosuch"]).status.code(), Some(1));
}

#[test]
fn bad_orders_are_refused_when_they_are_made() {
    let host = Host::new();
    for (arguments, says) in [
        (&["create", "--stop-signal", "FOO", "tiny"][..], "unknown signal \"FOO\""),
        (&["create", "--workdir", "x", "tiny"], "is not an absolute path"),
        (&["create", "--pull", "never", "nosuch"], "there is no image \"nosuch\""),
    ] {
        let (code, said) = host.fails(arguments);
        assert!(code == Some(125) && said.contains(says), "{arguments:?}: {said}");
    }
    assert_eq!(host.said(&["ps", "-aq"]), "");
    // One of an older version has no order.
    let id = host.said(&["create", "--network", "none", "tiny"]);
    fs::remove_file(host.0.path().join("data/instances").join(&id).join("order.json")).unwrap();
    let (_, said) = host.fails(&["start", &id]);
    assert!(said.contains("an older mvm has made it"), "{said}");
}

#[test]
fn one_gets_another_name_and_is_removed_with_what_nothing_uses() {
    let host = Host::new();
    let id = host.said(&["create", "--name", "web", "--network", "none", "-l", "a=b", "tiny"]);
    let kept = host.said(&["container", "create", "--name", "kept", "--network", "none", "tiny"]);
    for (arguments, says) in [
        (&["rename", "web", "kept"][..], "the name kept is in use by"),
        (&["rename", "nosuch", "other"], "there is no VM or container \"nosuch\""),
        (&["port", "web", "80"], "port 80/tcp is not published"),
    ] {
        let (_, said) = host.fails(arguments);
        assert!(said.contains(says), "{arguments:?}: {said}");
    }
    assert_eq!(host.said(&["rename", "web", "new"]), "");
    assert_eq!(
        host.said(&["ps", "-a", "--filter", "name=new", "--format", "{{.ID}} {{.Names}}"]),
        format!("{id} new")
    );
    host.fails(&["inspect", "web"]);
    // The name that it had is free.
    assert_eq!(host.said(&["rename", "kept", "web"]), "");
    assert_eq!(host.said(&["port", "web"]), "");
    let sizes = host.said(&["container", "ls", "-as", "--format", "{{.Size}}"]);
    assert!(sizes.lines().count() == 2 && sizes.lines().all(|size| size.contains("(virtual ")), "{sizes}");
    assert!(host.said(&["container", "prune"]).contains("WARNING! This will remove all stopped containers."));
    let pruned = host.said(&["container", "prune", "-f", "--filter", "label=a"]);
    assert!(pruned.starts_with(&format!("Deleted Containers:\n{id}\n\nTotal reclaimed space: ")), "{pruned}");
    let pruned = host.said(&["system", "prune", "-af"]);
    assert!(pruned.contains(&format!("Deleted Containers:\n{kept}\n")), "{pruned}");
    assert!(pruned.contains("Deleted Images:\nuntagged: "), "{pruned}");
    assert_eq!(host.said(&["images", "-q"]), "");
    assert_eq!(host.said(&["system", "restore"]), "");
}

#[test]
fn what_happens_is_noted_and_limits_are_changed() {
    let host = Host::new();
    let id = host.said(&["create", "--name", "web", "--network", "none", "-l", "a=b", "tiny"]);
    assert_eq!(
        host.said(&["update", "--memory", "64m", "--pids-limit", "7", "--restart", "always", "web"]),
        "web"
    );
    let form = "{{.HostConfig.Memory}} {{.HostConfig.PidsLimit}} {{.HostConfig.RestartPolicy.Name}}";
    assert_eq!(host.said(&["inspect", "-f", form, "web"]), format!("{} 7 always", 64 << 20));
    let (code, said) = host.fails(&["update", "--memory-reservation", "65m", "web"]);
    assert!(code == Some(1) && said.contains("--memory-reservation is more than --memory"), "{said}");
    // One that was never started is not started by the policy.
    assert_eq!(host.said(&["system", "restore"]), "");
    host.said(&["rename", &id[..6], "new"]);
    host.said(&["rm", "new"]);
    let events =
        |arguments: &[&str]| host.said(&[&["events", "--since", "1h", "--until", "0s"], arguments].concat());
    let all = events(&["--filter", "type=container"]);
    let actions: Vec<_> = all.lines().map(|line| line.split_whitespace().nth(2).unwrap()).collect();
    assert_eq!(actions, ["create", "update", "rename", "destroy"], "{all}");
    assert!(
        all.lines().all(|line| line.contains(&id) && line.contains("a=b") && line.contains("image=tiny")),
        "{all}"
    );
    let form = "{{.Action}} {{.Actor.Attributes.oldName}} {{.Actor.Attributes.name}} {{.ID}}";
    let renamed = events(&["--filter", "event=rename", "--format", form]);
    assert_eq!(renamed, format!("rename web new {id}"));
    let json = events(&["--filter", "container=web", "--format", "json"]);
    assert_eq!(json.lines().count(), 2, "{json}");
    for line in json.lines() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(event["timeNano"].as_u64().unwrap() > 1 << 60, "{line}");
    }
}
