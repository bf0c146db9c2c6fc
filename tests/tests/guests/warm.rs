//! Containers whose VMs go on from a template.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

use super::containers::{IMAGE, stores, text};
use super::forks::check_clock;

/// A place of its own for templates and containers, with the store's images.
pub struct Warm(TempDir);

impl Warm {
    pub fn new() -> Self {
        let warm = Self(TempDir::new().unwrap());
        let images = stores().directory.path().join("images");
        std::os::unix::fs::symlink(images, warm.0.path().join("images")).unwrap();
        warm.configure("manual");
        warm
    }

    /// When templates are made and used.
    pub fn configure(&self, templates: &str) {
        fs::create_dir_all(self.0.path().join("mvm")).unwrap();
        fs::write(self.0.path().join("mvm/config.toml"), format!("templates = {templates:?}")).unwrap();
    }

    pub fn mvm(&self, arguments: &[&str]) -> Command {
        let mut command = stores().mvm();
        command.env("MVM_DATA_DIR", self.0.path()).env("XDG_CONFIG_HOME", self.0.path());
        command.env_remove("MVM_COLD").args(arguments);
        command
    }

    /// Where the templates and containers are.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Waits until a process in the background has made a template, so that `is_there`.
    pub fn wait_until(&self, deadline: Instant, is_there: impl Fn() -> bool) {
        // Who makes one has the lock meanwhile. To ask all the time would leave it no processor: it makes room for all
        // others.
        let lock = fs::OpenOptions::new().write(true).open(self.0.path().join("templates/lock")).unwrap();
        while !is_there() {
            assert!(Instant::now() < deadline, "no template is made");
            std::thread::sleep(Duration::from_secs(1));
            flock(&lock, FlockOperation::LockExclusive).unwrap();
            flock(&lock, FlockOperation::Unlock).unwrap();
        }
    }

    /// Runs mvm with these arguments, and returns what it prints.
    pub fn said(&self, arguments: &[&str]) -> String {
        let output = self.mvm(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// `mvm run` with these arguments, whose VM goes on from a template if it `is_warm`.
    pub fn run(&self, is_warm: bool, arguments: &[&str]) -> Output {
        let common = ["--log-level", "info", "run", "--rm", "--network", "none"];
        let output = self.mvm(&[&common, arguments].concat()).output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(said.contains("the VM goes on from template "), is_warm, "{said}");
        output
    }
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

#[test]
fn containers_of_one_template_are_as_those_that_boot_and_differ_from_each_other() {
    let warm = Warm::new();
    assert_eq!(warm.said(&["template", "build", "--network", "none"]), "");
    let listed = warm.said(&["template", "ls", "--format", "{{.Name}} {{.Network}}"]);
    assert!(listed.lines().count() == 1 && listed.ends_with("-none none\n"), "{listed}");
    let script = "echo out; echo err >&2; cat /proc/sys/kernel/random/uuid /proc/sys/kernel/random/boot_id; \
                  head -c 16 /dev/urandom | md5sum; date +%s; hostname; echo x >/new; cat /new; exit 3";
    let shown: Vec<Vec<String>> = [true, true, false]
        .into_iter()
        .map(|is_warm| {
            let cold: &[&str] = if is_warm { &[] } else { &["--cold"] };
            let output = warm.run(is_warm, &[cold, &[IMAGE, "sh", "-c", script]].concat());
            let lines: Vec<_> = text(&output.stdout).lines().map(str::to_owned).collect();
            assert_eq!((output.status.code(), lines.len()), (Some(3), 7), "{output:?}");
            assert!(text(&output.stderr).contains("err\n"), "{output:?}");
            let clock: u64 = lines[4].parse().unwrap();
            assert!(clock.abs_diff(seconds()) <= 5, "{clock}");
            assert_eq!((&*lines[0], &*lines[6]), ("out", "x"));
            lines
        })
        .collect();
    for line in [1, 2, 3, 5] {
        assert!(shown[0][line] != shown[1][line] && shown[1][line] != shown[2][line], "{shown:#?}");
    }
}

#[test]
fn what_a_container_has_is_put_into_a_vm_that_goes_on() {
    let warm = Warm::new();
    warm.said(&["template", "build", "--network", "none"]);
    let options = ["--name", "box", "-v", "data:/data", "--tmpfs", "/t", "-m", "200m", IMAGE];
    // Another size is another template.
    warm.run(false, &[&options[..], &["true"]].concat());
    warm.said(&["template", "build", "--network", "none", "-m", "200m"]);
    warm.run(true, &[&options[..], &["sh", "-c", "echo kept >/data/file"]].concat());
    let read = warm.run(true, &[&options[..], &["cat", "/data/file"]].concat());
    assert_eq!(text(&read.stdout), "kept\n");
    // It can be stopped, looked into, and started again, as any.
    let create =
        ["create", "--network", "none", "--name", "long", IMAGE, "sh", "-c", "echo >>/runs; exec sleep 1000"];
    warm.said(&create);
    warm.said(&["start", "long"]);
    assert_eq!(warm.said(&["exec", "long", "sh", "-c", "wc -l </runs"]).trim(), "1");
    check_clock(warm.mvm(&[]), "long");
    warm.said(&["stop", "-t", "5", "long"]);
    warm.said(&["start", "long"]);
    assert_eq!(warm.said(&["exec", "long", "sh", "-c", "wc -l </runs"]).trim(), "2");
    warm.said(&["rm", "-f", "long"]);
    // With as many disks as there is room for, it is saved and copied as any.
    let volumes = ["-v", "one:/one", "-v", "two:/two"];
    let run = ["run", "-d", "--network", "none", "--name", "full"];
    warm.said(&[&run[..], &volumes, &[IMAGE, "sleep", "1000"]].concat());
    warm.said(&["exec", "full", "sh", "-c", "echo kept >/two/file"]);
    warm.said(&["pause", "--save", "full"]);
    warm.said(&["resume", "full"]);
    warm.said(&["fork", "full", "--name", "copy"]);
    for name in ["full", "copy"] {
        assert_eq!(warm.said(&["exec", name, "cat", "/two/file"]), "kept\n");
    }
    warm.said(&["rm", "-f", "-v", "full", "copy"]);
}

#[test]
fn folders_of_the_host_are_those_of_each_container() {
    let warm = Warm::new();
    let folders = TempDir::new().unwrap();
    let path = |name: &str| folders.path().join(name).display().to_string();
    let options = |name: &str| format!("{}:/host", path(name));
    for name in ["a", "b"] {
        fs::create_dir(path(name)).unwrap();
        fs::write(path(&format!("{name}/name")), format!("{name}\n")).unwrap();
    }
    let large: Vec<u8> =
        (0..4 << 20).map(|number: u32| number.wrapping_mul(0x9e37_79b9).to_le_bytes()[3]).collect();
    fs::write(path("a/large"), &large).unwrap();
    // One of another kind of VM is of no use.
    warm.said(&["template", "build", "--network", "none"]);
    warm.run(false, &["-v", &options("a"), IMAGE, "true"]);
    warm.said(&["template", "build", "--network", "none", "--folders"]);
    let listed = warm.said(&["template", "ls", "--format", "{{.Name}} {{.For}} {{.Folders}}"]);
    assert!(listed.lines().next().unwrap().ends_with("-none-share containers yes"), "{listed}");
    for name in ["a", "b", "a"] {
        let file = format!("{}:/one:ro", path(&format!("{name}/name")));
        let script =
            "cat /host/name /one; cat /host/new 2>/dev/null; cp /host/name /host/new; chmod 600 /host/new
            touch /one 2>/dev/null; echo $?; ls /host; cat /proc/sys/kernel/random/boot_id";
        let before = fs::read_to_string(path(&format!("{name}/new"))).unwrap_or_default();
        let output = warm.run(true, &["-v", &options(name), "-v", &file, IMAGE, "sh", "-c", script]);
        let files = if name == "a" { "large\nname\nnew\n" } else { "name\nnew\n" };
        let expected = format!("{name}\n{name}\n{before}1\n{files}");
        let shown = text(&output.stdout);
        assert!(shown.starts_with(&expected), "{shown} {}", text(&output.stderr));
        assert_eq!(fs::read_to_string(path(&format!("{name}/new"))).unwrap(), format!("{name}\n"));
    }
    let script = "cp /host/large /tmp/x && cp /tmp/x /host/copy && cmp /host/large /host/copy && echo same";
    let copied = warm.run(true, &["-v", &options("a"), IMAGE, "sh", "-c", script]);
    assert_eq!(text(&copied.stdout), "same\n", "{copied:?}");
    assert!(fs::read(path("a/copy")).unwrap() == large);
    // Two at once, one of which is stopped and started again.
    let create = ["create", "--network", "none", "--name", "long", "-v"];
    let command = [IMAGE, "sh", "-c", "echo run >>/host/runs; exec sleep 1000"];
    warm.said(&[&create[..], &[&options("b")], &command].concat());
    warm.said(&["start", "long"]);
    let seen = warm.run(true, &["-v", &options("b"), IMAGE, "cat", "/host/runs"]);
    assert_eq!(text(&seen.stdout), "run\n");
    warm.said(&["stop", "-t", "5", "long"]);
    warm.said(&["start", "long"]);
    assert_eq!(warm.said(&["exec", "long", "cat", "/host/runs"]), "run\nrun\n");
    warm.said(&["rm", "-f", "long"]);
}

#[test]
fn the_vm_of_a_pod_goes_on_from_a_template_of_its_own() {
    let warm = Warm::new();
    let folder = warm.0.path().join("given");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("file"), "given\n").unwrap();
    let folder = folder.display().to_string();
    warm.said(&["template", "build", "--network", "none", "--pod"]);
    warm.said(&["template", "build", "--network", "none", "--pod", "--folders"]);
    for (name, options) in [("plain", &[][..]), ("folders", &["-v", &folder])] {
        warm.said(&[&["pod", "create", "--network", "none", "--name", name], options].concat());
        let mount = format!("{folder}:/given");
        let given: &[&str] = if options.is_empty() { &[] } else { &["-v", &mount] };
        let script = "echo $HOSTNAME; cat /given/file 2>/dev/null; echo x >/data/x; echo y >/new; date +%s";
        let run = ["--log-level", "info", "run", "--rm", "--pod", name, "-v", "poddata:/data"];
        let shown = warm.said(&[&run[..], given, &[IMAGE, "sh", "-c", script]].concat());
        let expected = if given.is_empty() { "" } else { "given\n" };
        let clock = shown.strip_prefix(&format!("{name}\n{expected}")).map(|rest| rest.trim().parse::<u64>());
        assert!(matches!(clock, Some(Ok(clock)) if clock.abs_diff(seconds()) <= 5), "{shown}");
        // Several at once.
        for container in ["one", "two", "three"] {
            warm.said(&["run", "-d", "--pod", name, "--name", container, IMAGE, "sleep", "1000"]);
        }
        assert_eq!(warm.said(&["exec", "three", "hostname"]), format!("{name}\n"));
        let id = warm.said(&["pod", "inspect", "--format", "{{.Id}}", name]);
        let messages = warm.0.path().join("instances").join(id.trim()).join("mvm.log");
        let said = fs::read_to_string(&messages).unwrap_or_else(|error| panic!("{messages:?}: {error}"));
        assert!(said.contains("the VM goes on from template "), "{said}");
        warm.said(&["pod", "rm", "--force", name]);
    }
}

#[test]
fn a_template_that_is_cut_off_ends_what_runs_from_it_and_no_more() {
    let warm = Warm::new();
    warm.said(&["template", "build", "--network", "none"]);
    let name = warm.said(&["template", "ls", "--format", "{{.Name}}"]);
    for (container, option) in [("cut", "--rm=false"), ("other", "--cold")] {
        let run = ["run", "-d", "--network", "none", "--name", container, option, IMAGE, "sleep", "1000"];
        warm.said(&run);
    }
    let memory = warm.0.path().join("templates").join(name.trim()).join("memory");
    fs::OpenOptions::new().write(true).open(memory).unwrap().set_len(0).unwrap();
    let output = warm.mvm(&["exec", "cut", "true"]).output().unwrap();
    assert!(!output.status.success() && text(&output.stderr).lines().count() == 1, "{output:?}");
    warm.said(&["wait", "cut"]);
    let error = warm.said(&["inspect", "--format", "{{.State.Error}}", "cut"]);
    assert!(error.contains("was the file that it comes from cut off"), "{error}");
    assert_eq!(warm.said(&["exec", "other", "echo", "on"]), "on\n");
    warm.run(false, &[IMAGE, "true"]);
    warm.said(&["rm", "-f", "cut", "other"]);
}

#[test]
fn a_template_that_is_damaged_or_of_something_else_is_not_used() {
    let warm = Warm::new();
    warm.said(&["template", "build", "--network", "none"]);
    let name = warm.said(&["template", "ls", "--format", "{{.Name}}"]);
    let directory = warm.0.path().join("templates").join(name.trim());
    let manifest = directory.join("manifest.json");
    let whole = fs::read_to_string(&manifest).unwrap();
    let replace = |content: &[u8], file: &str| {
        fs::remove_file(directory.join(file)).unwrap();
        fs::write(directory.join(file), content).unwrap();
    };
    let run = |is_warm| {
        let output = warm.run(is_warm, &[IMAGE, "echo", "runs"]);
        assert_eq!(text(&output.stdout), "runs\n", "{output:?}");
    };
    replace(whole.replace("\"format\": 1", "\"format\": 2").as_bytes(), "manifest.json");
    run(false);
    replace(b"{", "manifest.json");
    run(false);
    replace(whole.as_bytes(), "manifest.json");
    run(true);
    let verify = || {
        let output = warm.mvm(&["template", "verify"]).output().unwrap();
        (output.status.code(), text(&output.stdout))
    };
    assert_eq!(verify(), (Some(0), format!("{}  whole\n", name.trim())));
    replace(b"not a state", "state");
    assert_eq!(verify(), (Some(2), format!("{}  altered: state\n", name.trim())));
    run(false);
    // Which has it made again.
    warm.said(&["template", "build", "--network", "none"]);
    run(true);
    assert!(warm.said(&["template", "prune"]).contains("Total reclaimed space"));
    let listed = || warm.said(&["template", "ls", "--format", "{{.Name}}"]);
    assert_eq!(listed(), "");
    run(false);
    assert_eq!(listed(), "");
    // In the background, once a container has found none.
    warm.configure("auto");
    run(false);
    warm.wait_until(Instant::now() + Duration::from_secs(120), || !listed().is_empty());
    run(true);
    warm.configure("off");
    run(false);
}
