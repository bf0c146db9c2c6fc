//! The commands of images, on a store of the test's own; podman judges what both have.

#![allow(missing_docs, reason = "tests are named after what they show")]
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

#[path = "images/places.rs"]
mod places;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rstest::rstest;
use serde_json::Value;
use tempfile::TempDir;

/// A store with the image `tools:1` and one without a name, both of the same layer.
struct Images(TempDir);

impl Images {
    fn new() -> Self {
        let images = Self(TempDir::new().unwrap());
        let tar = images.archive("a.tar", &["hello"]);
        let changes = [
            "CMD [\"/bin/hello\"]",
            "ENV A=1 B=2",
            "LABEL org.example.name=tools",
            "EXPOSE 80",
            "WORKDIR /bin",
            "USER 1000:1000",
            "STOPSIGNAL SIGQUIT",
        ];
        let changes = changes.iter().flat_map(|change| ["--change", change]);
        let mut arguments = vec!["import", "-m", "a comment"];
        arguments.extend(changes);
        arguments.extend([tar.as_str(), "localhost/tools:1"]);
        images.said(&arguments);
        images.said(&["import", &tar]);
        images
    }

    /// An archive of files, made by tar.
    fn archive(&self, name: &str, files: &[&str]) -> String {
        let root = self.0.path().join("root");
        fs::create_dir_all(&root).unwrap();
        for file in files {
            fs::write(root.join(file), file.repeat(1000)).unwrap();
        }
        let path = self.0.path().join(name);
        let made = Command::new("tar").arg("-caf").arg(&path).arg("-C").arg(root).arg(".").status();
        assert!(made.unwrap().success(), "tar -caf {name}");
        path.to_str().unwrap().to_owned()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut program = Command::new(env!("CARGO_BIN_EXE_mvm"));
        program.args(arguments).current_dir(self.0.path());
        program.env("MVM_DATA_DIR", self.0.path().join("data")).env_remove("MVM_LOG").stdin(Stdio::null());
        program
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn run_with(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut child = self.command(arguments);
        let child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = child.spawn().unwrap();
        // A command that does not read to the end closes the pipe.
        let _ = child.stdin.take().unwrap().write_all(input);
        child.wait_with_output().unwrap()
    }

    fn said(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn ids(&self, filters: &[&str]) -> usize {
        let mut arguments = vec!["images", "--quiet"];
        arguments.extend(filters.iter().flat_map(|filter| ["--filter", filter]));
        self.said(&arguments).lines().count()
    }
}

#[test]
fn lists_have_docker_s_columns() {
    let images = Images::new();
    let table = images.said(&["images"]);
    let mut lines = table.lines();
    let heading: Vec<&str> =
        lines.next().unwrap().split("   ").map(str::trim).filter(|word| !word.is_empty()).collect();
    assert_eq!(heading, ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"]);
    assert_eq!(lines.count(), 2, "{table}");
    let digests = images.said(&["image", "ls", "--digests", "--no-trunc"]);
    assert!(
        digests.contains("DIGEST") && digests.contains("<none>") && digests.contains("sha256:"),
        "{digests}"
    );
    let json = images.said(&["images", "--format", "json", "--filter", "reference=localhost/*"]);
    let image: Value = serde_json::from_str(json.trim()).unwrap();
    let fields: Vec<&str> = image.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = [
        "Containers",
        "CreatedAt",
        "CreatedSince",
        "Digest",
        "ID",
        "Repository",
        "SharedSize",
        "Size",
        "Tag",
        "UniqueSize",
        "VirtualSize",
    ];
    assert_eq!(fields, expected);
    let history = images.said(&["history", "--format", "json", "localhost/tools:1"]);
    let step: Value = serde_json::from_str(history.trim()).unwrap();
    let fields: Vec<&str> = step.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(fields, ["Comment", "CreatedAt", "CreatedBy", "CreatedSince", "ID", "Size"]);
    assert_eq!(images.said(&["history", "--quiet", "localhost/tools:1"]).trim().len(), 12);
    let exact = ["history", "--human=false", "--format", "{{.Size}} {{.CreatedSince}}", "localhost/tools:1"];
    let exact = images.said(&exact);
    assert!(exact.contains("+0000 UTC") && exact.starts_with(|sign: char| sign.is_ascii_digit()), "{exact}");
}

#[rstest]
#[case(&[], 2)]
#[case(&["dangling=true"], 1)]
#[case(&["dangling=false"], 1)]
#[case(&["reference=localhost/tools"], 1)]
#[case(&["reference=*/tool?:[0-9]"], 1)]
#[case(&["reference=tools"], 0)]
#[case(&["reference=tools", "reference=localhost/tools:1"], 1)]
#[case(&["label=org.example.name"], 1)]
#[case(&["label=org.example.name=tools", "label=none"], 0)]
#[case(&["label!=org.example.name"], 1)]
#[case(&["since=localhost/tools:1", "before=localhost/tools:1"], 0)]
#[case(&["until=24h"], 0)]
#[case(&["until=2100-01-01"], 2)]
fn filters_choose_images(#[case] filters: &[&str], #[case] expected: usize) {
    assert_eq!(Images::new().ids(filters), expected, "{filters:?}");
}

#[test]
fn images_are_removed_as_by_docker() {
    let images = Images::new();
    let id = images.said(&["images", "-q", "localhost/tools"]).trim().to_owned();
    images.said(&["tag", &id, "localhost/tools:2"]);
    let output = images.run(&["rmi", &id]);
    let line = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && line.contains("use --force"), "{line}");
    assert_eq!(images.said(&["rmi", "localhost/tools:2"]), "Untagged: localhost/tools:2\n");
    let said = images.said(&["image", "rm", "--force", &id, "nothing"]);
    assert!(said.starts_with("Untagged: localhost/tools:1\nDeleted: sha256:"), "{said}");
    assert_eq!(images.ids(&[]), 1);
}

#[test]
fn pruning_asks_and_takes_only_what_has_no_name() {
    let images = Images::new();
    for answer in ["", "n\n", "perhaps\n"] {
        let said = images.run_with(&["image", "prune"], answer.as_bytes());
        assert!(
            said.status.success()
                && said.stdout.starts_with(b"WARNING! This will remove all dangling images.")
        );
        assert_eq!(images.ids(&[]), 2);
    }
    assert_eq!(
        images.said(&["image", "prune", "--force", "--filter", "until=1h"]),
        "Total reclaimed space: 0B\n"
    );
    let said = images.run_with(&["image", "prune"], b"y\n");
    let said = String::from_utf8(said.stdout).unwrap();
    // Its layer is that of the other image.
    assert!(
        said.contains("Deleted Images:\ndeleted: sha256:") && said.ends_with("reclaimed space: 0B\n"),
        "{said}"
    );
    assert_eq!(images.ids(&[]), 1);
    let kept = images.said(&["image", "prune", "--all", "--force", "--filter", "label!=org.example.name"]);
    assert_eq!(kept, "Total reclaimed space: 0B\n");
    let said = images.said(&["image", "prune", "-af"]);
    assert!(said.contains("untagged: localhost/tools:1") && said.ends_with("kB\n"), "{said}");
    assert_eq!(images.ids(&[]), 0);
}

#[test]
fn disk_space_counts_a_shared_layer_once() {
    let images = Images::new();
    let rows = images.said(&["system", "df", "--format", "json"]);
    let rows: Vec<Value> = rows.lines().map(|row| serde_json::from_str(row).unwrap()).collect();
    let one = images.said(&["images", "--format", "{{.Size}}", "localhost/tools"]);
    assert_eq!(rows[0]["Type"], "Images");
    assert_eq!(rows[0]["TotalCount"], "2");
    assert_eq!(rows[0]["Size"], one.trim());
    assert_eq!(rows[0]["Reclaimable"], format!("{} (100%)", one.trim()));
    assert_eq!(rows[1]["Type"], "Containers");
    let verbose = images.said(&["system", "df", "-v"]);
    assert!(verbose.contains("Images space usage:") && verbose.contains("UNIQUE SIZE"), "{verbose}");
    let all = images.said(&["system", "df", "-v", "--format", "{{range .Images}}{{.UniqueSize}} {{end}}"]);
    assert_eq!(all, "0B 0B \n");
}

#[rstest]
#[case("a.tar")]
#[case("a.tar.gz")]
#[case("a.tar.zst")]
fn archives_are_imported_whatever_compresses_them(#[case] name: &str) {
    let images = Images(TempDir::new().unwrap());
    let path = images.archive(name, &["one", "two"]);
    let id = images.said(&["import", &path]);
    let layers = ["image", "inspect", "--format", "{{json .RootFS.Layers}}", id.trim()];
    let from_file = images.said(&layers);
    let piped = images.run_with(&["import", "-", "piped"], &fs::read(&path).unwrap());
    assert!(piped.status.success(), "{}", String::from_utf8_lossy(&piped.stderr));
    assert_eq!(images.said(&["image", "inspect", "--format", "{{json .RootFS.Layers}}", "piped"]), from_file);
    assert!(fs::read_dir(images.0.path().join("data/images/tmp")).unwrap().next().is_none());
}

/// Each row: what follows `mvm`, the exit code, and a part of the one line that it says.
#[test]
fn what_is_wrong_gets_one_line() {
    let images = Images::new();
    fs::write(images.0.path().join("text"), "this is not an archive").unwrap();
    fs::write(images.0.path().join("empty"), "").unwrap();
    for (arguments, code, part) in [
        (
            &["images", "--format", "{{.Id"][..],
            2,
            "--format: invalid template: line 1, column 6: unclosed action",
        ),
        (&["images", "--format", "{{if .ID}}x"], 2, "needs one {{end}}"),
        (&["images", "--format", "{{nothing .ID}}"], 2, "there is no function \"nothing\""),
        (&["images", "--format", "{{.Id}}"], 2, "there is no field \"Id\": use ID, Repository"),
        (&["images", "--format", "{{.ID.X}}"], 2, "can't evaluate field X in type string"),
        (&["images", "--filter", "dangling"], 2, "--filter: invalid filter \"dangling\": use NAME=VALUE"),
        (&["images", "--filter", "size=1"], 2, "unknown filter \"size\": use before, dangling"),
        (&["images", "--filter", "dangling=maybe"], 2, "invalid value \"maybe\": use true or false"),
        (&["images", "--filter", "before=none"], 1, "there is no image \"none\""),
        (&["images", "--filter", "until=soon"], 2, "use a time, or a duration such as 24h"),
        (&["images", "--json", "--quiet"], 2, "cannot be used together"),
        (&["history", "none"], 1, "there is no image \"none\""),
        (&["history", "-H=maybe", "none"], 2, "invalid value \"maybe\""),
        (&["image", "inspect", "none"], 1, "there is no image \"none\""),
        (
            &["image", "inspect", "-f", "{{.Nothing}}", "localhost/tools:1"],
            1,
            "there is no field \"Nothing\"",
        ),
        (&["image", "inspect"], 2, "missing argument: mvm image inspect IMAGE"),
        (&["image", "show"], 2, "unknown command \"show\""),
        (&["image", "prune", "--filter", "reference=a"], 2, "use dangling, label, label!, until"),
        (&["image", "prune", "--none"], 2, "unknown option --none; see `mvm image prune --help`"),
        (&["system", "df", "--format", "{{.Name}}"], 2, "there is no field \"Name\": use Type, TotalCount"),
        (&["import"], 2, "missing argument: mvm import FILE"),
        (&["import", "https://example.com/root.tar"], 1, "fetch it first, as in `curl URL | mvm import -`"),
        (&["import", "none"], 1, "cannot open none: No such file"),
        (&["import", "empty"], 1, "cannot import empty: the archive is empty"),
        (&["import", "text"], 1, "cannot import text: cannot store layer sha256:"),
        (&["import", "."], 1, "cannot import .:"),
        (&["import", "a.tar", "Upper"], 2, "use lower case"),
        (&["import", "-c", "RUN make", "a.tar"], 1, "unknown instruction \"RUN\": use CMD, ENTRYPOINT"),
        (&["import", "-c", "EXPOSE http", "a.tar"], 1, "invalid port \"http\""),
    ] {
        let output = images.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.starts_with("mvm: ") && said.trim_end().lines().count() == 1, "{arguments:?}: {said}");
        assert!(said.contains(part), "{arguments:?}: no {part:?} in {said}");
    }
    assert_eq!(images.ids(&[]), 2, "something was imported");
}

/// podman with a store of its own; `None` where it is not installed or can't work.
fn podman(directory: &Path, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new("podman");
    command.arg("--root").arg(directory.join("podman")).arg("--runroot").arg(directory.join("podman-run"));
    command.args(["--storage-driver", "vfs"]).args(arguments);
    let output = command.output().ok()?;
    if !output.status.success() {
        eprintln!("podman {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

#[test]
fn podman_shows_the_same_of_the_same_image() {
    let images = Images::new();
    let archive = images.0.path().join("saved.tar");
    let archive = archive.to_str().unwrap();
    images.said(&["save", "-o", archive, "localhost/tools:1"]);
    if podman(images.0.path(), &["load", "-q", "-i", archive]).is_none() {
        eprintln!("skipped: podman is not installed, or cannot load an image here");
        return;
    }
    for template in [
        "{{.Architecture}}/{{.Os}}",
        "{{.RepoTags}} {{len .RepoTags}}",
        "{{json .Config.Cmd}} {{.Config.Cmd}} {{index .Config.Cmd 0}}",
        "{{json .Config.Env}} {{range .Config.Env}}<{{.}}>{{end}}",
        "{{range $i, $e := .Config.Env}}{{if $i}},{{end}}{{$i}}{{$e}}{{end}}",
        "{{.Config.Labels}} {{index .Config.Labels \"org.example.name\"}}|{{index .Config.Labels \"none\"}}|",
        "{{range $key, $value := .Config.Labels}}{{$key}}={{$value}}{{end}}",
        "{{range $port, $none := .Config.ExposedPorts}}{{$port}}{{end}}",
        "{{.Config.WorkingDir}} {{.Config.User}} {{.Config.StopSignal}}",
        "{{json .RootFS.Layers}} {{.RootFS.Type}} {{len .RootFS.Layers}}",
        "{{with .RootFS}}{{index .Layers 0}}{{end}}",
        "{{.Author}}|{{.Parent}}|",
        "{{if .Config.Volumes}}some{{else}}none{{end}}",
        "{{if and .Architecture (eq .Os \"linux\")}}linux{{else if .Os}}other{{end}}",
        "{{printf \"%q %10s|%-10s|\" .Os .Os .Os}} {{printf \"%d\" (len .Config.Env)}}",
        "{{upper .Os}} {{lower \"ABC\"}} {{join .Config.Env \", \"}}",
        "{{- .Os -}}   x",
        "{{println .Os}}{{/* nothing */}}",
        "{{$os := .Os}}{{range .Config.Env}}{{$os}} {{end}}",
        "{{.Os | printf \"%s!\" | len}}",
        "{{slice .Os 0 2}} {{not .Os}} {{or .Author .Os}} {{lt 1 2}} {{ne .Os \"a\"}}",
    ] {
        let theirs =
            podman(images.0.path(), &["image", "inspect", "--format", template, "localhost/tools:1"]);
        let ours = images.said(&["image", "inspect", "--format", template, "localhost/tools:1"]);
        // podman leaves out the last line end of those that there are.
        assert_eq!(theirs.as_deref().map(str::trim_end), Some(ours.trim_end()), "{template}");
    }
    for template in [
        "{{.Repository}}:{{.Tag}}",
        "{{.ID}} {{.CreatedAt}}",
        "{{.Repository | upper}} {{len .ID}}",
        "{{if eq .Tag \"1\"}}first{{end}}",
    ] {
        let theirs = podman(images.0.path(), &["images", "--format", template]);
        let ours = images.said(&["images", "--format", template, "localhost/tools"]);
        assert_eq!(theirs.as_deref(), Some(ours.as_str()), "{template}");
    }
}
