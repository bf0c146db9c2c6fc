//! `mvm volume`, and volumes of containers that are made and not started.

#![allow(missing_docs, reason = "tests are named after what they show")]
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::{Command, Output, Stdio};

use rstest::rstest;
use serde_json::Value;
use tempfile::TempDir;

/// A directory of data, and one of assets whose template is of 256 MiB and 20 GiB.
struct Host(TempDir);

impl Host {
    fn new() -> Self {
        let host = Self(TempDir::new().unwrap());
        let assets = host.0.path().join("assets");
        fs::create_dir(&assets).unwrap();
        let record = |size: u64| [&[size, 1024, 5].map(u64::to_le_bytes).concat()[..], b"magic"].concat();
        let templates = [b"mvm-ext4", &*record(256 << 20), &*record(20 << 30)].concat();
        fs::write(assets.join("changes.templates"), templates).unwrap();
        fs::write(assets.join("vmlinux"), "").unwrap();
        fs::write(assets.join("agent.erofs"), "").unwrap();
        host
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut program = Command::new(env!("CARGO_BIN_EXE_mvm"));
        program.args(arguments).env("MVM_DATA_DIR", self.0.path().join("data"));
        program
            .env("MVM_ASSETS", self.0.path().join("assets"))
            .env("MVM_RUNTIME_DIR", self.0.path().join("run"));
        program.env_remove("MVM_LOG").stdin(Stdio::null()).current_dir(self.0.path());
        program
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What a command prints that succeeds.
    fn said(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The line of a command that fails.
    fn fails(&self, arguments: &[&str], code: i32) -> String {
        let output = self.run(arguments);
        let line = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {line}");
        assert!(line.starts_with("mvm: ") && line.ends_with('\n') && line.lines().count() == 1, "{line}");
        line
    }

    fn names(&self) -> Vec<String> {
        self.said(&["volume", "ls", "-q"]).lines().map(str::to_owned).collect()
    }

    /// An image with a volume at /data and one at /more.
    fn image(&self) -> &'static str {
        let tar = self.0.path().join("image.tar");
        fs::create_dir_all(self.0.path().join("root/data")).unwrap();
        let root = self.0.path().join("root");
        let made = Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(root).arg(".").status();
        assert!(made.unwrap().success());
        let changes = ["--change", "VOLUME [\"/data\",\"/more/\"]", "--change", "CMD [\"/x\"]"];
        let arguments =
            [&["import"], &changes[..], &[tar.to_str().unwrap(), "localhost/with-volumes"]].concat();
        self.said(&arguments);
        "localhost/with-volumes"
    }
}

#[test]
fn a_volume_is_made_listed_shown_and_removed() {
    let host = Host::new();
    assert_eq!(host.said(&["volume", "ls"]), "DRIVER   VOLUME NAME\n");
    let made = host.said(&["volume", "create", "--label", "team=web", "-o", "size=1G", "data"]);
    assert_eq!(made, "data\n");
    assert_eq!(host.said(&["volume", "create", "data"]), "data\n");
    assert_eq!(host.said(&["volume", "create", "-o", "size=1G", "data"]), "data\n");
    let line = host.fails(&["volume", "create", "-o", "size=2G", "data"], 1);
    let says = "volume data exists, made --opt size=1G: remove it first, or leave out --opt";
    assert!(line.contains(says), "{line}");
    assert_eq!(host.said(&["volume", "create", "-d", "shared", "pool"]), "pool\n");
    let list = host.said(&["volume", "ls"]);
    assert_eq!(list, "DRIVER   VOLUME NAME\nlocal    data\nshared   pool\n");
    let shown: Value = serde_json::from_str(&host.said(&["volume", "inspect", "data"])).unwrap();
    let volume = &shown[0];
    assert_eq!(
        (&volume["Name"], &volume["Driver"], &volume["Scope"]),
        (&"data".into(), &"local".into(), &"local".into())
    );
    assert_eq!((&volume["Labels"]["team"], &volume["Options"]["size"]), (&"web".into(), &"1G".into()));
    assert!(volume["CreatedAt"].as_str().unwrap().ends_with('Z'));
    let disk = fs::File::open(volume["Mountpoint"].as_str().unwrap()).unwrap();
    let (metadata, mut magic) = (disk.metadata().unwrap(), [0; 5]);
    disk.read_exact_at(&mut magic, 1024).unwrap();
    assert_eq!((metadata.len(), &magic), (1 << 30, b"magic"));
    assert!(metadata.blocks() * 512 < 1 << 20);
    let format = ["volume", "inspect", "-f", "{{.Name}} {{.Driver}}", "data", "pool"];
    assert_eq!(host.said(&format), "data local\npool shared\n");
    let json = host.said(&["volume", "ls", "--format", "json"]);
    assert_eq!(json.lines().count(), 2);
    assert!(json.contains("\"Labels\":\"team=web\"") && json.contains("\"Links\":\"0\""), "{json}");
    assert_eq!(host.said(&["volume", "rm", "data", "pool"]), "data\npool\n");
    assert!(host.names().is_empty());
    let random = host.said(&["volume", "create"]);
    assert_eq!(random.trim_end().len(), 64);
}

#[test]
fn one_that_is_made_without_a_name_is_pruned_and_does_not_go_with_a_container() {
    let host = Host::new();
    let image = host.image();
    let name = host.said(&["volume", "create", "--label", "team=web"]).trim_end().to_owned();
    assert!(name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit()), "{name}");
    let form = "{{.Anonymous}} {{json .Labels}}";
    let shown = host.said(&["volume", "inspect", "-f", form, &name]);
    assert_eq!(shown, "true {\"com.docker.volume.anonymous\":\"\",\"team\":\"web\"}\n");
    host.said(&["create", "--name", "web", "-v", &format!("{name}:/data"), image]);
    host.said(&["volume", "prune", "-f"]);
    host.said(&["rm", "-v", "web"]);
    assert_eq!(host.names(), [&*name]);
    assert!(host.said(&["volume", "prune", "-f"]).contains(&name));
    assert!(host.names().is_empty());
}

#[rstest]
#[case(&["volume", "create", "../x"], 2, "invalid volume name \"../x\": use 2 to 255 letters")]
#[case(&["volume", "create", "a/b"], 2, "invalid volume name \"a/b\"")]
#[case(&["volume", "create", "x"], 2, "invalid volume name \"x\"")]
#[case(&["volume", "create", ""], 2, "invalid volume name \"\"")]
#[case(&["volume", "create", "-d", "nfs", "data"], 2, "unknown driver \"nfs\": use local or shared")]
#[case(&["volume", "create", "-o", "size=1", "data"], 2, "invalid volume option \"size=1\": use size=SIZE, from 256M to 1T")]
#[case(&["volume", "create", "-o", "type=nfs", "data"], 2, "invalid volume option \"type=nfs\"")]
#[case(&["volume", "create", "-d", "shared", "-o", "size=1G", "data"], 2, "invalid volume option \"size=1G\"")]
#[case(&["volume", "rm", "missing"], 1, "there is no volume missing: `mvm volume ls` lists them")]
#[case(&["volume", "inspect", "missing"], 1, "there is no volume missing")]
#[case(&["volume", "ls", "--filter", "size=1"], 2, "unknown filter \"size\": use dangling, driver, label, label!, name")]
#[case(&["volume", "ls", "--filter", "dangling=maybe"], 2, "use true or false")]
#[case(&["volume", "ls", "--filter", "driver=nfs"], 2, "use local or shared")]
#[case(&["volume", "prune", "-f", "--filter", "until=1h"], 2, "unknown filter \"until\"")]
fn mistakes_are_said_in_a_line(#[case] arguments: &[&str], #[case] code: i32, #[case] says: &str) {
    let host = Host::new();
    let line = host.fails(arguments, code);
    assert!(line.contains(says), "{line}");
    assert!(host.names().is_empty());
}

#[test]
fn a_name_of_300_bytes_is_refused_and_one_that_is_there_is_not_changed() {
    let host = Host::new();
    let line = host.fails(&["volume", "create", &"n".repeat(300)], 2);
    assert!(line.contains("use 2 to 255 letters") && line.len() < 400, "{line}");
    host.said(&["volume", "create", &"n".repeat(255)]);
    host.said(&["volume", "create", "data"]);
    let line = host.fails(&["volume", "create", "-d", "shared", "data"], 1);
    assert!(line.contains("volume data exists with the driver local"), "{line}");
    assert_eq!(host.said(&["volume", "rm", "-f", "missing", "data"]), "missing\ndata\n");
}

#[test]
fn filters_choose_volumes() {
    let host = Host::new();
    for (name, label) in [("web-data", "team=web"), ("db-data", "team=db"), ("other", "keep")] {
        host.said(&["volume", "create", "--label", label, name]);
    }
    let chosen = |filters: &[&str]| {
        let filters = filters.iter().flat_map(|filter| ["--filter", filter]);
        let arguments: Vec<_> = ["volume", "ls", "-q"].into_iter().chain(filters).collect();
        host.said(&arguments).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(chosen(&["name=data"]), ["db-data", "web-data"]);
    assert_eq!(chosen(&["label=team"]), ["db-data", "web-data"]);
    assert_eq!(chosen(&["label=team=web"]), ["web-data"]);
    assert_eq!(chosen(&["label!=team"]), ["other"]);
    assert_eq!(chosen(&["driver=shared"]), [""; 0]);
    assert_eq!(chosen(&["dangling=true"]).len(), 3);
    assert_eq!(chosen(&["dangling=false"]).len(), 0);
}

#[test]
fn volumes_of_kept_containers_stay_and_anonymous_ones_go_with_them() {
    let host = Host::new();
    let image = host.image();
    host.said(&["create", "--name", "web", "-v", "data:/data", "-v", "/other:ro", image]);
    let names = host.names();
    // Those of /more and /other have random names.
    assert_eq!((names.len(), names.iter().filter(|name| name.len() == 64).count()), (3, 2));
    let line = host.fails(&["volume", "rm", "data"], 1);
    assert!(line.contains("volume data is in use by web: `mvm rm` that first"), "{line}");
    assert!(host.fails(&["volume", "rm", "-f", "data"], 1).contains("in use by web"));
    assert_eq!(host.said(&["volume", "ls", "-q", "-f", "dangling=true"]), "");
    assert!(host.said(&["volume", "prune", "--all", "-f"]).contains("Total reclaimed space: 0B"));
    let mounts: Value =
        serde_json::from_str(&host.said(&["inspect", "-f", "{{json .Mounts}}", "web"])).unwrap();
    let shown = |target: &str| {
        let mounts = mounts.as_array().unwrap();
        mounts.iter().find(|mount| mount["Destination"] == target).unwrap().clone()
    };
    assert_eq!((&shown("/data")["Name"], &shown("/data")["RW"]), (&"data".into(), &true.into()));
    assert_eq!((&shown("/other")["Type"], &shown("/other")["RW"]), (&"volume".into(), &false.into()));
    assert!(shown("/more")["Source"].as_str().unwrap().ends_with("/disk.ext4"));
    let df = host.said(&["system", "df"]);
    let row = df.lines().find(|line| line.starts_with("Local Volumes")).unwrap();
    assert_eq!(row.split_whitespace().nth(2), Some("3"), "{df}");
    assert!(host.said(&["system", "df", "-v"]).contains("Local Volumes space usage"));
    host.said(&["rm", "-v", "web"]);
    assert_eq!(host.names(), ["data"]);
    // Without -v they stay, as docker's.
    host.said(&["create", "--name", "web", image]);
    host.said(&["rm", "web"]);
    assert_eq!(host.names().len(), 3);
    let pruned = host.said(&["volume", "prune", "-f"]);
    assert!(
        pruned.starts_with("Deleted Volumes:\n") && pruned.contains("\n\nTotal reclaimed space: "),
        "{pruned}"
    );
    assert_eq!(host.names(), ["data"]);
}

#[test]
fn prune_asks_and_takes_what_is_chosen() {
    let host = Host::new();
    host.said(&["volume", "create", "--label", "keep", "data"]);
    host.said(&["volume", "create", "other"]);
    let mut child = host.command(&["volume", "prune", "-a"]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"n\n").unwrap();
    let asked = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    assert!(
        asked.contains("WARNING! This will remove all local volumes not used by at least one container."),
        "{asked}"
    );
    assert!(host.said(&["volume", "prune", "-f"]).starts_with("Total reclaimed space: 0B"));
    host.said(&["volume", "prune", "-f", "--all", "--filter", "label!=keep"]);
    assert_eq!(host.names(), ["data"]);
    host.said(&["volume", "prune", "-f", "--filter", "all=1"]);
    assert!(host.names().is_empty());
}

#[test]
fn nothing_is_left_of_a_container_that_has_too_many_volumes() {
    let host = Host::new();
    let image = host.image();
    let mounts: Vec<String> = (10..30).map(|number| format!("vol{number}:/v{number}")).collect();
    let mounts = mounts.iter().flat_map(|mount| ["-v", mount]);
    let arguments: Vec<_> =
        ["create", "--network", "none"].into_iter().chain(mounts).chain([image]).collect();
    let line = host.fails(&arguments, 125);
    assert!(line.contains("22 volumes are more than the 12 that a container can have"), "{line}");
    assert!(host.names().is_empty() && host.said(&["ps", "-aq"]).is_empty());
    let line = host.fails(&["create", "-v", "/x:/data", "--tmpfs", "/data/", image], 125);
    assert!(line.contains("duplicate mount point /data"), "{line}");
}
