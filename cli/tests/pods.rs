//! Pods, as far as they have no VM yet.

#![allow(missing_docs, reason = "tests are named after what they show")]
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

mod tiny_image;

use std::fs;

use rstest::rstest;
use tiny_image::Host;

/// Makes a volume, which nothing can use: there are no templates here.
fn make_volume(host: &Host, name: &str, driver: &str) {
    let directory = host.0.path().join("data/volumes").join(name);
    fs::create_dir_all(directory.join("data")).unwrap();
    fs::write(directory.join("disk.ext4"), "").unwrap();
    let record = format!("{{\"name\":\"{name}\",\"driver\":\"{driver}\",\"created\":0}}");
    fs::write(directory.join("volume.json"), record).unwrap();
}

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
    assert!(host.fails(&["create", "--name", "web", "tiny"]).1.contains("or `mvm pod rm -f web`"));
    assert!(host.fails(&["pod", "create", "app"]).1.contains("the name app is in use"));
    assert_eq!(host.said(&["pod", "rm", "-f", "web", "gone"]), id);
    assert_eq!((host.said(&["pod", "ps", "-q"]), host.said(&["ps", "-aq"])), (String::new(), String::new()));
    assert_eq!(host.mvm(&["pod", "exists", "web"]).status.code(), Some(1));
}

#[test]
fn what_all_containers_of_a_pod_mount_and_may_mount_is_known_and_stays() {
    let host = Host::new();
    let path = |name: &str| host.0.path().join(name).to_str().unwrap().to_owned();
    for (name, driver) in [("disk", "local"), ("own", "local"), ("pool", "shared")] {
        make_volume(&host, name, driver);
    }
    // What is missing is made, as with docker.
    let all = format!("{}:/all", path("new/folder"));
    let created =
        ["pod", "create", "--network", "none", "-v", &all, "-v", "disk:/disk:ro", "-v", "pool", "web"];
    host.said(&created);
    assert!(host.0.path().join("new/folder").is_dir());
    let below = format!("{}:/below", path("new/folder/deeper"));
    let options = ["-v", &*below, "-v", "pool:/pool", "-v", "own:/disk", "--tmpfs", "/t"];
    let id = host.said(&[&["create", "--pod", "web"], &options[..], &["tiny"]].concat());
    assert!(host.0.path().join("new/folder/deeper").is_dir());
    let mounts = host.said(&["inspect", "-f", "{{range .Mounts}}{{.Destination}} {{.RW}};{{end}}", &id]);
    // Its own in place of the pod's, and the pod's.
    assert_eq!(mounts, "/below true;/pool true;/disk true;/all true;");
    for name in ["pool", "disk", "own"] {
        assert!(!host.mvm(&["volume", "rm", name]).status.success(), "{name}");
    }
    // It was made and not started, and so has written nothing.
    assert_eq!(host.said(&["pod", "logs", "web"]), "");
    let stats = ["pod", "stats", "--all", "--no-stream", "--format", "{{.CID}} {{.CPU}} {{.MemUsage}}"];
    assert_eq!(host.said(&stats), format!("{id} -- -- / --"));
    host.said(&["pod", "rm", "--force", "web"]);
    host.said(&["volume", "rm", "pool", "disk", "own"]);
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
#[case(&["run", "--pod", "web", "-v", "/tmp:/x", "tiny"], 125, "/tmp is not in a folder of the pod: its VM has those that `mvm pod create -v HOSTPATH` names")]
#[case(&["create", "--pod", "web", "-v", "/nowhere/at/all:/x", "tiny"], 125, "/nowhere/at/all is not in a folder of the pod")]
#[case(&["create", "--pod", "web", "--mount", "type=bind,src=/nowhere,dst=/x", "tiny"], 125, "bind source path does not exist: /nowhere")]
#[case(&["create", "--pod", "web", "-v", "/dev/null:/x", "tiny"], 125, "it is a device")]
#[case(&["create", "--pod", "web", "-v", "pool:/x", "tiny"], 125, "volume pool is a directory of the host, as it was made with --driver shared")]
#[case(&["create", "--pod", "web", "-v", "a:/x", "tiny"], 125, "invalid volume name \"a\"")]
#[case(&["create", "--pod", "shares", "-v", "/usr/lib:/x", "tiny"], 125, "/usr/lib is read-only in the pod: add :ro behind the path")]
#[case(&["create", "--pod", "shares", "-v", "pool:/x", "tiny"], 125, "volume pool is read-only in the pod: add :ro")]
#[case(&["create", "--pod", "shares", "-v", "/usr/../etc:/x:ro", "tiny"], 125, "is not in a folder of the pod")]
#[case(&["pod", "create", "-v", "/dev/null"], 125, "it is a device")]
#[case(&["pod", "create", "-v", "missing"], 125, "there is no volume missing")]
#[case(&["pod", "create", "-v", "disk"], 125, "volume disk is a disk, which the pod gets when a container has it")]
#[case(&["pod", "create", "-v", "/usr:/x", "-v", "disk:/x"], 125, "duplicate mount point /x")]
#[case(&["pod", "create", "-v", ""], 2, "invalid volume \"\"")]
#[case(&["pod", "create", "-v", "a/b"], 2, "a/b")]
#[case(&["pod", "create", "-v", "/usr:/x:bogus"], 2, "invalid mode \"bogus\"")]
#[case(&["pod", "logs", "none"], 1, "there is no pod \"none\"")]
#[case(&["pod", "logs", "-c", "box", "web"], 1, "web: it has no container box")]
#[case(&["pod", "logs", "--tail", "x", "web"], 2, "invalid number of lines \"x\"")]
#[case(&["pod", "top", "web"], 1, "web: it does not run: `mvm pod start` it first")]
#[case(&["pod", "top", "web", "capeff"], 2, "unknown column \"capeff\": use user, pid, ppid")]
#[case(&["pod", "stats", "none"], 1, "there is no pod \"none\"")]
#[case(&["run", "--pod", "new:a/b", "tiny"], 125, "a/b")]
#[case(&["pod", "create", "--share", "user"], 2, "invalid namespace \"user\": use pid")]
#[case(&["pod", "create", "--hostname", "a b"], 125, "invalid host name \"a b\"")]
#[case(&["pod", "create", "-m", "1m"], 125, "invalid --memory of 1048576 bytes: use 6m or more")]
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
    make_volume(&host, "disk", "local");
    make_volume(&host, "pool", "shared");
    host.said(&["pod", "create", "--network", "none", "-v", "/usr:ro", "-v", "pool:ro", "shares"]);
    let (found, line) = host.fails(arguments);
    assert!(found == Some(code) && line.contains(says), "{found:?} {line}");
}
