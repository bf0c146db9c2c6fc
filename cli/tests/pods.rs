//! Pods, as far as they have no VM yet.

#![allow(missing_docs, reason = "tests are named after what they show")]
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

mod tiny_image;

use rstest::rstest;
use tiny_image::Host;

#[test]
fn a_pod_is_made_and_listed_with_its_containers_and_removed() {
    let host = Host::new();
    let id = host.said(&["pod", "create", "--network", "none", "-l", "a=b", "--share", "pid", "web"]);
    assert!(id.len() == 12, "{id}");
    assert_eq!(host.said(&["pod", "ps", "-q"]), id);
    let format = "{{.Id}} {{.Name}} {{.Status}} {{.NumberOfContainers}} {{.ContainerNames}} {{.Labels}}";
    assert_eq!(host.said(&["pod", "ps", "--format", format]), format!("{id} web Created 0  a=b"));
    let table = host.said(&["pod", "ls"]);
    assert!(table.starts_with("POD ID"), "{table}");
    assert!(
        table.lines().next().unwrap().ends_with("STATUS   CREATED                  # OF CONTAINERS")
            || table.contains("# OF CONTAINERS"),
        "{table}"
    );
    // It is no container.
    assert_eq!(host.said(&["ps", "-aq"]), "");
    let own = host.said(&["create", "--pod", "web", "--name", "app", "tiny"]);
    let other = host.said(&["create", "--pod", &id[..5], "--rm", "tiny"]);
    assert_eq!(
        host.said(&["pod", "ps", "--format", "{{.Status}} {{.NumberOfContainers}} {{.ContainerIds}}"]),
        format!("Created 2 {own},{other}")
    );
    let fields = "{{.State}} {{.Hostname}} {{.SharedNamespaces}} {{(index .Containers 0).Name}} {{.Pid}}";
    assert_eq!(host.said(&["pod", "inspect", "-f", fields, "web"]), "Created web [ipc net uts pid] app 0");
    let rows = host.said(&["ps", "-a", "--filter", "pod=web", "--format", "{{.ID}} {{.Pod}} {{.PodName}}"]);
    assert_eq!(rows, format!("{other} {id} web\n{own} {id} web"));
    assert!(host.said(&["ps", "-a", "--pod"]).lines().next().unwrap().ends_with("POD ID         PODNAME"));
    assert_eq!(host.said(&["ps", "-aq", "--filter", "pod=nothing"]), "");
    assert_eq!(host.said(&["inspect", "-f", "{{.Pod}} {{.Config.Hostname}}", "app"]), format!("{id} web"));
    let (code, line) = host.fails(&["pod", "rm", "web"]);
    assert!(
        code == Some(1) && line.contains("web: it has 2 containers: `mvm rm` them first, or use --force"),
        "{line}"
    );
    // Names are for pods and containers alike.
    assert!(host.fails(&["create", "--name", "web", "tiny"]).1.contains("the name web is in use"));
    assert!(host.fails(&["pod", "create", "app"]).1.contains("the name app is in use"));
    assert_eq!(host.said(&["pod", "rm", "-f", "web", "gone"]), id);
    assert_eq!((host.said(&["pod", "ps", "-q"]), host.said(&["ps", "-aq"])), (String::new(), String::new()));
    assert_eq!(host.mvm(&["pod", "exists", "web"]).status.code(), Some(1));
}

#[test]
fn a_pod_is_made_with_its_first_container_or_by_itself() {
    let host = Host::new();
    let own = host.said(&["create", "--pod", "new:both", "tiny"]);
    assert!(host.mvm(&["pod", "exists", "both"]).status.success());
    assert!(host.fails(&["create", "--pod", "new:both", "tiny"]).1.contains("the name both is in use"));
    assert_eq!(host.said(&["pod", "ps", "--format", "{{.ContainerIds}}"]), own);
    let nameless = host.said(&["pod", "create"]);
    assert_eq!(
        host.said(&["pod", "inspect", "-f", "{{.Name}} {{.Hostname}}", &nameless]),
        format!("{nameless} {nameless}")
    );
    // Its VM can't boot: the container is not started, and what is wrong is said once.
    let (code, line) = host.fails(&["run", "--rm", "--pod", &nameless, "tiny"]);
    assert!(code == Some(125) && line.contains(&format!("cannot start pod {nameless}: ")), "{line}");
    assert_eq!(host.said(&["ps", "-aq"]), own);
    let removed = host.said(&["pod", "prune", "--force"]);
    assert_eq!(removed.lines().count(), 2, "{removed}");
    assert_eq!(host.said(&["pod", "prune", "--force"]), "");
    assert_eq!(host.said(&["ps", "-aq"]), "");
}

#[rstest]
#[case(&["run", "--pod", "none", "tiny"], 125, "there is no pod \"none\": `mvm pod ps` lists them")]
#[case(&["run", "--pod", "box", "tiny"], 125, "there is no pod \"box\"")]
#[case(&["run", "--pod", "web", "-p", "80", "tiny"], 125, "--publish is the pod's, whose network and names")]
#[case(&["create", "--pod", "web", "--hostname", "x", "tiny"], 125, "--hostname is the pod's")]
#[case(&["run", "--pod", "web", "--dns", "1.1.1.1", "tiny"], 125, "--dns is the pod's")]
#[case(&["run", "--pod", "web", "-v", "/tmp:/x", "tiny"], 125, "-v and --mount are not there for containers in pods yet")]
#[case(&["run", "--pod", "new:a/b", "tiny"], 125, "a/b")]
#[case(&["pod", "create", "--share", "user"], 2, "invalid namespace \"user\": use pid")]
#[case(&["pod", "create", "--hostname", "a b"], 125, "invalid host name \"a b\"")]
#[case(&["pod", "create", "-m", "1m"], 125, "invalid --memory: use 6m or more")]
#[case(&["pod", "create", "--network", "mynet"], 2, "unknown network \"mynet\"")]
#[case(&["pod", "create", "web"], 125, "the name web is in use")]
#[case(&["pod", "start", "box"], 1, "there is no pod \"box\"")]
#[case(&["pod", "inspect", "none"], 1, "there is no pod \"none\"")]
#[case(&["pod", "pause", "web"], 1, "web: it does not run")]
#[case(&["pod", "ps", "--filter", "status=up"], 2, "created, running, degraded, paused or exited")]
#[case(&["pod", "ps", "--filter", "x=y"], 2, "id, name, status")]
#[case(&["rm", "web"], 1, "\"web\" is a pod, which has containers: use `mvm pod`")]
#[case(&["logs", "web"], 1, "\"web\" is a pod")]
#[case(&["start", "web"], 1, "\"web\" is a pod")]
#[case(&["wait", "web"], 1, "\"web\" is a pod")]
fn what_cannot_be_is_refused_in_one_line(#[case] arguments: &[&str], #[case] code: i32, #[case] says: &str) {
    let host = Host::new();
    host.said(&["pod", "create", "--network", "none", "web"]);
    host.said(&["create", "--name", "box", "tiny"]);
    let (found, line) = host.fails(arguments);
    assert!(found == Some(code) && line.contains(says), "{found:?} {line}");
}
