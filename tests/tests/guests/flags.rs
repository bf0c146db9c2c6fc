//! Options of docker's beside those that the other modules have: one container serves most of them.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;

use super::containers::{IMAGE, run, stores, text, with_input};
use super::life::{command, mvm, said, start};

/// What a command says that ends with `code`, on one line.
fn refused(arguments: &[&str], code: i32) -> String {
    let output = mvm(arguments);
    let line = text(&output.stderr);
    assert!(output.status.code() == Some(code) && line.lines().count() == 1, "{arguments:?}: {line}");
    line
}

/// Types and actions of all events, without what follows a colon.
fn events(filters: &[&str]) -> BTreeSet<String> {
    let format = ["events", "--since", "1h", "--until", "0s", "--format", "{{.Type}} {{.Action}}"];
    let filters = filters.iter().flat_map(|filter| ["--filter", filter]);
    let all = said(&format.into_iter().chain(filters).collect::<Vec<_>>());
    all.lines().map(|line| line.split(':').next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn one_container_has_dockers_further_options_and_leaves_its_volumes_to_others() {
    let place = TempDir::new().unwrap();
    let path = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir(path("folder")).unwrap();
    fs::write(path("folder/file"), "of the host\n").unwrap();
    let script = "mkdir /data/sub; echo text >/data/file; echo below >/data/sub/file; ln -s / /data/out
        trap 'echo asked; exit 3' INT; echo ready; while :; do sleep 0.1; done";
    let (id_file, folder) = (path("id"), format!("{}:/host", path("folder")));
    let options = [
        ["--name", "flags"],
        ["--annotation", "note=1"],
        ["-l", "team=a b"],
        ["-e", "A=1"],
        ["--log-opt", "labels=team,none"],
        ["--log-opt", "env=A"],
        ["--log-opt", "tag={{.Name}}/{{.ID}}"],
        ["--cidfile", &id_file],
        ["-v", "flags:/data"],
        ["-v", &folder],
        ["--tmpfs", "/tmp"],
    ];
    let id = start(&[options.as_flattened(), &[IMAGE, "sh", "-c", script]].concat());
    assert_eq!(fs::read_to_string(&id_file).unwrap(), id);
    let line = refused(&["run", "--cidfile", &id_file, IMAGE, "true"], 125);
    assert!(line.contains("exists: remove it"), "{line}");
    let shown = "{{.HostConfig.Annotations.note}} {{.HostConfig.ContainerIDFile}} {{.HostConfig.LogConfig.Type}} \
                 {{.HostConfig.LogConfig.Config.labels}} {{.Config.AttachStdout}} {{gt .SizeRw 0}} {{gt .SizeRootFs .SizeRw}}";
    let expected = format!("1 {id_file} json-file team,none false true true");
    assert_eq!(said(&["inspect", "--size", "-f", shown, "flags"]), expected);
    said(&["exec", "flags", "sh", "-c", "until test -h /data/out; do sleep 0.1; done"]);
    let details = format!("A=1,tag=flags%2F{id},team=a+b ready");
    let mut logs = command(&["logs", "-f", "--details", "flags"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(logs.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line.trim_end(), details);
    logs.kill().unwrap();
    logs.wait().unwrap();
    // The end of a command that is not waited for is told too.
    said(&["exec", "-d", "flags", "sh", "-c", "exit 9"]);
    let ends = ["events", "--since", "1h", "--filter", "container=flags", "--filter", "event=exec_die"];
    let mut watch = command(&[&ends[..], &["--format", "{{.Actor.Attributes.exitCode}}"]].concat());
    let mut watch = watch.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    assert!(lines.any(|code| code.unwrap() == "9"));
    watch.kill().unwrap();
    watch.wait().unwrap();
    // A disk is that of one VM.
    let line = refused(&["run", "--rm", "--network", "none", "--volumes-from", "flags", IMAGE, "true"], 125);
    assert!(line.contains("volume flags is in use by another container"), "{line}");
    let quota = || said(&["exec", "flags", "cat", "/sys/fs/cgroup/cpu.max"]);
    said(&["update", "--cpu-quota", "25000", "--cpu-period", "50000", "--memory-swap", "-1", "flags"]);
    assert_eq!(quota(), "50000 100000");
    said(&["update", "--cpu-quota", "-1", "flags"]);
    assert_ne!(quota(), "50000 100000");
    said(&["stop", "--signal", "INT", "flags"]);
    assert_eq!(said(&["wait", "flags"]), "3");
    assert_eq!(said(&["logs", "-n", "1", "flags"]), "asked");
    not_running(&place);
    its_volumes();
    let container = events(&["container=flags", "type=container"]);
    for action in [
        "create",
        "start",
        "exec_create",
        "exec_start",
        "exec_die",
        "update",
        "kill",
        "die",
        "stop",
        "archive-path",
        "extract-to-dir",
    ] {
        assert!(container.contains(&format!("container {action}")), "{action}: {container:?}");
    }
    assert!(!container.contains("container attach"), "{container:?}");
    let volume = events(&["volume=flags"]);
    assert_eq!(
        volume.iter().map(String::as_str).collect::<Vec<_>>(),
        ["volume create", "volume mount", "volume unmount"]
    );
    said(&["rm", "flags"]);
    said(&["volume", "rm", "flags"]);
    assert!(events(&["volume=flags"]).contains("volume destroy"));
}

/// Files of the container that has ended, in what it has mounted.
fn not_running(place: &TempDir) {
    let path = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("new"), "copied\n").unwrap();
    said(&["cp", &path("new"), "flags:/data/sub"]);
    said(&["cp", "flags:/host/file", &path("back")]);
    assert_eq!(fs::read_to_string(path("back")).unwrap(), "of the host\n");
    let line = refused(&["cp", "flags:/tmp/x", &path("back")], 1);
    assert!(line.contains("/tmp/x is in a temporary file system"), "{line}");
}

/// What others have of the container's volume and folder.
fn its_volumes() {
    let all = "cat /data/file /data/sub/new /host/file /below/file; touch /data/x 2>/dev/null || echo read-only; ls /one";
    let output = run(&[
        "--rm",
        "--network",
        "none",
        "--volumes-from",
        "flags:ro",
        "--mount",
        "source=flags,target=/below,volume-subpath=sub/.",
        "--mount",
        "source=flags,target=/one,volume-subpath=file,readonly",
        IMAGE,
        "sh",
        "-c",
        all,
    ]);
    let expected = "text\ncopied\nof the host\nbelow\nread-only\n/one\n";
    assert_eq!(text(&output.stdout), expected, "{}", text(&output.stderr));
    for (path, says) in [("none", "No such file"), ("out/etc", "symbolic links")] {
        let mount = format!("source=flags,target=/m,volume-subpath={path}");
        let line = refused(&["run", "--rm", "--network", "none", "--mount", &mount, IMAGE, "true"], 125);
        assert!(line.contains(&format!("open {path} of the volume of /m")) && line.contains(says), "{line}");
    }
}

#[test]
fn streams_are_connected_that_are_asked_for() {
    let script = "echo out; echo err >&2";
    let output = run(&["--rm", "--network", "none", "-a", "stderr", IMAGE, "sh", "-c", script]);
    assert_eq!((text(&output.stdout), text(&output.stderr)), (String::new(), "err\n".into()));
    // As with docker the ID is printed, and the container goes on with the input that it got.
    let mut fed = stores().mvm();
    fed.args([
        "run",
        "-i",
        "-a",
        "stdin",
        "--name",
        "fed",
        "--network",
        "none",
        IMAGE,
        "sh",
        "-c",
        "cat; echo end >&2",
    ]);
    let output = with_input(fed, b"line\n");
    let id = text(&output.stdout);
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
    assert_eq!(
        said(&["inspect", "-f", "{{.Id}} {{.Config.AttachStdin}} {{.Config.AttachStdout}}", "fed"]),
        format!("{} true false", id.trim_end())
    );
    assert_eq!(said(&["wait", "fed"]), "0");
    let logs = mvm(&["logs", "fed"]);
    assert_eq!((text(&logs.stdout), text(&logs.stderr)), ("line\n".into(), "end\n".into()));
    assert!(events(&["container=fed"]).contains("container attach"));
    said(&["rm", "fed"]);
}

#[test]
fn output_goes_to_the_journal_with_dockers_fields() {
    let path = Path::new("/run/systemd/journal/socket");
    // Where systemd runs, its journal gets the lines.
    let journal = (!path.exists()).then(|| {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        UnixDatagram::bind(path).unwrap()
    });
    let options = ["--log-driver", "journald", "--log-opt", "labels=a.b", "-l", "a.b=c", "--name", "lines"];
    let script = "echo out; echo err >&2; head -c 20000 /dev/zero | tr '\\0' x; echo";
    let output = run(&[&["--network", "none"][..], &options, &[IMAGE, "sh", "-c", script]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let id = said(&["inspect", "-f", "{{.Id}}", "lines"]);
    let line = refused(&["logs", "lines"], 1);
    assert!(line.contains(&format!("`journalctl CONTAINER_ID_FULL={id}`")), "{line}");
    if let Some(journal) = journal {
        journal.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let rest = format!(
            "CONTAINER_ID={id}\nCONTAINER_ID_FULL={id}\nCONTAINER_NAME=lines\nCONTAINER_TAG={id}\nIMAGE_NAME={IMAGE}\n\
             SYSLOG_IDENTIFIER={id}\nA_B=c\n"
        );
        let mut messages = BTreeSet::new();
        for _ in 0..4 {
            let mut buffer = vec![0; 64 << 10];
            let count = journal.recv(&mut buffer).unwrap();
            messages.insert(text(&buffer[..count]));
        }
        let x = |count| "x".repeat(count);
        let expected = [
            format!("MESSAGE=out\nPRIORITY=6\n{rest}"),
            format!("MESSAGE=err\nPRIORITY=3\n{rest}"),
            format!("MESSAGE={}\nPRIORITY=6\nCONTAINER_PARTIAL_MESSAGE=true\n{rest}", x(16 << 10)),
            format!("MESSAGE={}\nPRIORITY=6\n{rest}", x(20_000 - (16 << 10))),
        ];
        assert_eq!(messages, BTreeSet::from(expected));
        fs::remove_file(path).unwrap();
    }
    said(&["rm", "lines"]);
}
