//! Files of containers: `mvm cp`, `diff`, `export` and `commit`.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use super::containers::{IMAGE, stores, text, with_input};

/// A container that runs in the background until this is dropped.
struct Container(&'static str);

impl Container {
    fn start(name: &'static str, options: &[&str], script: &str) -> Self {
        let script = format!("{script}\ntouch /ready; exec sleep 100000");
        let arguments =
            [&["run", "-d", "--name", name, "--network", "none"], options, &[IMAGE, "sh", "-c", &script]];
        let started = stores().mvm().args(arguments.concat()).output().unwrap();
        assert!(started.status.success(), "{}", text(&started.stderr));
        let container = Self(name);
        container.shell("until test -e /ready; do sleep 0.1; done");
        container
    }

    fn mvm(&self, arguments: &[&str]) -> Output {
        stores().mvm().args(arguments).output().unwrap()
    }

    /// What a script in it prints.
    fn shell(&self, script: &str) -> String {
        let output = self.mvm(&["exec", self.0, "sh", "-c", script]);
        assert!(output.status.success(), "{script}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// `mvm cp`, which has to succeed and to say nothing.
    fn copy(&self, arguments: &[&str]) {
        let output = self.mvm(&[&["cp"], arguments].concat());
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "{arguments:?}");
    }

    /// What `mvm cp` says that fails.
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.mvm(&[&["cp"], arguments].concat());
        let line = text(&output.stderr);
        assert!(output.status.code() == Some(1) && line.lines().count() == 1, "{arguments:?}: {line}");
        line
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.mvm(&["rm", "-f", self.0]);
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Names and metadata of all files below a directory.
fn tree(top: &Path) -> String {
    let script = r#"find . -mindepth 1 | sort | while read -r f; do
        if [ -d "$f" ] && [ ! -h "$f" ]; then stat -c '%n %F %a %u:%g %y' "$f"
        else stat -c '%N %F %a %u:%g %s %y %h %t:%T' "$f"; fi; done
        find . -type f -size -2000k | sort | xargs -d '\n' md5sum"#;
    text(&Command::new("sh").args(["-c", script]).current_dir(top).output().unwrap().stdout)
}

#[test]
fn a_tree_goes_into_a_container_and_comes_back() {
    let container = Container::start("roundtrip", &[], "");
    let place = TempDir::new().unwrap();
    let from = place.path().join("from");
    fs::create_dir_all(from.join("x".repeat(200)).join("y".repeat(150))).unwrap();
    fs::write(from.join("x".repeat(200)).join("y".repeat(150)).join("z".repeat(250)), "long").unwrap();
    fs::write(from.join("müll \n'\"\\"), "name").unwrap();
    fs::write(from.join("set-id"), "x").unwrap();
    fs::set_permissions(from.join("set-id"), fs::Permissions::from_mode(0o6711)).unwrap();
    fs::hard_link(from.join("set-id"), from.join("again")).unwrap();
    symlink("../../etc/passwd", from.join("link")).unwrap();
    let sparse = File::create(from.join("sparse")).unwrap();
    sparse.set_len(8 << 30).unwrap();
    sparse.write_all_at(b"middle", 5 << 30).unwrap();
    let devices = Command::new("sh")
        .args(["-c", "mkfifo pipe && mknod char c 1 3 && mknod block b 7 200 && chown 1234:99999 again && chmod 6711 again"])
        .current_dir(&from)
        .status();
    assert!(devices.unwrap().success());
    container.copy(&[path(&from), "roundtrip:/there"]);
    let used: u64 = container.shell("du -k /there/sparse | cut -f1").trim().parse().unwrap();
    assert!(used < 1024, "{used} KiB of a sparse file");
    assert_eq!(
        container.shell("stat -c '%s %a %u:%g' /there/sparse /there/set-id"),
        "8589934592 644 0:0\n1 6711 1234:99999\n"
    );
    container.copy(&["-a", "roundtrip:/there", path(&place.path().join("back"))]);
    assert_eq!(tree(&place.path().join("back")), tree(&from));
    assert!(place.path().join("back/sparse").metadata().unwrap().blocks() < 2048);
    // Without --archive they belong to who copies.
    container.copy(&["roundtrip:/there/again", path(&place.path().join("own"))]);
    assert_eq!(place.path().join("own").metadata().unwrap().uid(), 0);
    let big = place.path().join("big");
    fs::write(&big, vec![7; 40 << 20]).unwrap();
    container.copy(&[path(&big), "roundtrip:/big"]);
    assert_eq!(
        container.shell("md5sum </big"),
        text(&Command::new("sh").arg("-c").arg(format!("md5sum <{}", path(&big))).output().unwrap().stdout)
    );
}

/// A guest that swaps links and directories while it is copied from harms itself alone.
#[test]
fn links_that_change_lead_nowhere() {
    let script = r#"mkdir -p /tree/a /other; echo secret >/other/file; echo plain >/tree/a/file
        (while :; do rm -rf /tree/a; ln -s /other /tree/a; rm /tree/a; mkdir /tree/a; echo plain >/tree/a/file; done) >/dev/null 2>&1 &"#;
    let container = Container::start("swapper", &[], script);
    let place = TempDir::new().unwrap();
    fs::write(place.path().join("outside"), "mine").unwrap();
    for turn in 0..10 {
        let target = place.path().join(format!("out{turn}"));
        // It may fail where files are gone, and says so in one line.
        let output = container.mvm(&["cp", "swapper:/tree", path(&target)]);
        assert!(
            output.status.success() || text(&output.stderr).lines().count() == 1,
            "{}",
            text(&output.stderr)
        );
        for entry in fs::read_dir(&target).into_iter().flatten() {
            let entry = entry.unwrap();
            let file = entry.path().join("file");
            let is_link = entry.path().is_symlink();
            assert!(
                is_link
                    || !file.exists()
                    || fs::read(&file).unwrap() == b"plain\n"
                    || fs::read(&file).unwrap().is_empty()
            );
        }
        let source = place.path().join("outside");
        let _ = container.mvm(&["cp", path(&source), "swapper:/tree/a/in"]);
    }
    assert_eq!(fs::read(place.path().join("outside")).unwrap(), b"mine");
    assert_eq!(container.shell("cat /other/file"), "secret\n");
}

#[test]
fn archives_that_lead_out_or_do_not_end_are_refused() {
    let container =
        Container::start("archives", &["--storage-opt", "size=256m"], "mkdir /to; echo kept >/file");
    let put = |archive: &[u8]| {
        let mut command = stores().mvm();
        command.args(["cp", "-", "archives:/to"]);
        let output = with_input(command, archive);
        (output.status.code(), text(&output.stderr))
    };
    let entry = |name: &str, size: u64, data: &[u8]| {
        let mut header = vec![0_u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..107].copy_from_slice(b"0000644");
        header[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        header[148..156].copy_from_slice(b"        ");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        [&header[..], data, &vec![0; data.len().next_multiple_of(512) - data.len()]].concat()
    };
    let end = [0; 1024];
    let (code, line) = put(&[&entry("../file", 1, b"x")[..], &end].concat());
    assert!(code == Some(1) && line.contains("../file in the archive is outside of the directory"), "{line}");
    assert_eq!(put(&[&entry("/abs/../file", 1, b"x")[..], &end].concat()), (Some(0), String::new()));
    assert_eq!(container.shell("cat /file; cat /to/file"), "kept\nx");
    let (code, line) =
        put(b"not an archive at all, but a text that is long enough to be none".repeat(20).as_slice());
    assert!(code == Some(1) && line.contains("not a tar archive"), "{line}");
    let (code, line) = put(&entry("short", 1 << 20, b"x"));
    assert!(code == Some(1) && line.contains("ends early"), "{line}");
    let (code, line) = put(b"\x1f\x8b\x08\0");
    assert!(code == Some(1) && line.contains("zcat"), "{line}");
    // More than there is room for: an error, and the container goes on.
    let (code, line) = put(&entry("bomb", 300 << 20, &vec![1; 300 << 20]));
    assert!(code == Some(1) && line.contains("No space left on device"), "{line}");
    assert_eq!(container.shell("rm -f /to/bomb; echo alive"), "alive\n");
}

#[test]
fn what_blocks_or_is_no_file_is_copied_or_refused() {
    let container = Container::start("kinds", &[], "mkfifo /pipe; mkdir /d; mkfifo /d/pipe");
    let place = TempDir::new().unwrap();
    container.copy(&["kinds:/d", path(&place.path().join("d"))]);
    container.copy(&["kinds:/pipe", path(&place.path().join("pipe"))]);
    assert!(place.path().join("d/pipe").metadata().unwrap().file_type().is_fifo());
    let line = container.refused(&[path(&place.path().join("pipe")), "kinds:/dev/null"]);
    assert!(line.contains("neither a directory nor a regular file"), "{line}");
    let line = container.refused(&["kinds:/none", path(place.path())]);
    assert!(line.contains("there is no file /none in the container"), "{line}");
    let line = container.refused(&["kinds:/a", "kinds:/b"]);
    assert!(line.contains("copying between containers is not supported"), "{line}");
    // The reader goes.
    let mut command = stores().mvm();
    command.args(["cp", "kinds:/bin", "-"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    assert!(!child.wait().unwrap().success());
    assert_eq!(container.shell("echo alive"), "alive\n");
}

#[test]
fn a_container_with_its_changes_in_memory_is_copied_too() {
    let container = Container::start(
        "memory",
        &["--storage-opt", "memory", "-m", "64m"],
        "echo x >/etc/new; rm /etc/group",
    );
    assert_eq!(
        text(&container.mvm(&["diff", "memory"]).stdout),
        "C /etc\nD /etc/group\nA /etc/new\nA /ready\n"
    );
    let place = TempDir::new().unwrap();
    container.copy(&["memory:/etc/new", path(&place.path().join("new"))]);
    assert_eq!(fs::read(place.path().join("new")).unwrap(), b"x\n");
    fs::write(place.path().join("big"), vec![1; 100 << 20]).unwrap();
    let output = container.mvm(&["cp", path(&place.path().join("big")), "memory:/big"]);
    assert!(
        output.status.code() == Some(1) && text(&output.stderr).lines().count() == 1,
        "{}",
        text(&output.stderr)
    );
    assert_eq!(container.shell("rm -f /big; echo alive"), "alive\n");
}

/// A committed image has what the container has, and its processes stood still meanwhile.
#[test]
fn an_image_is_made_of_a_container_that_writes() {
    let script = "mkdir /gone /replaced /data; touch /gone/x /replaced/old
        (while :; do echo >>/data/one; echo >>/data/two; done) &";
    let container = Container::start("writer", &["-e", "A=1", "-w", "/data"], script);
    let made = container.mvm(&["commit", "-m", "why", "writer", "localhost/written:1"]);
    assert!(made.status.success() && text(&made.stdout).starts_with("sha256:"), "{}", text(&made.stderr));
    let again = container.mvm(&["commit", "--pause=false", "writer"]);
    assert!(again.status.success(), "{}", text(&again.stderr));
    // It runs on.
    container.shell("before=$(wc -l </data/one); until test $(wc -l </data/one) -gt $before; do :; done");
    let seen = stores()
        .mvm()
        .args(["run", "--rm", "--network", "none", "localhost/written:1", "sh", "-c"])
        .arg("pwd; echo $A; test $(($(wc -l <one) - $(wc -l <two))) -le 1 && echo close; ls /gone")
        .output()
        .unwrap();
    assert_eq!(text(&seen.stdout), "/data\n1\nclose\nx\n", "{}", text(&seen.stderr));
    for image in ["localhost/written:1", text(&again.stdout).trim()] {
        assert!(container.mvm(&["rmi", "-f", image]).status.success());
    }
}

/// What a container that does not run has is reached without starting it.
#[test]
fn a_container_that_does_not_run_is_copied_too() {
    let container = Container("resting");
    let done = |arguments: &[&str]| {
        let output = container.mvm(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    let script = "cat /put; echo written >/wrote; rm /etc/group; echo x >>/etc/passwd";
    done(&["create", "--name", "resting", "--network", "none", IMAGE, "sh", "-c", script]);
    let place = TempDir::new().unwrap();
    fs::write(place.path().join("put"), "put\n").unwrap();
    container.copy(&[path(&place.path().join("put")), "resting:/"]);
    assert_eq!(done(&["start", "--attach", "resting"]), "put\n");
    container.copy(&["resting:/wrote", path(&place.path().join("wrote"))]);
    assert_eq!(fs::read(place.path().join("wrote")).unwrap(), b"written\n");
    assert_eq!(done(&["diff", "resting"]), "C /etc\nD /etc/group\nC /etc/passwd\nA /put\nA /wrote\n");
    done(&["commit", "-c", "CMD [\"cat\", \"/wrote\"]", "resting", "localhost/rested"]);
    assert_eq!(done(&["run", "--rm", "--network", "none", "localhost/rested"]), "written\n");
    done(&["rmi", "localhost/rested"]);
    // While it is copied, a start of it waits.
    let mut copy = stores().mvm().args(["cp", "resting:/", "-"]).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Read::read_exact(copy.stdout.as_mut().unwrap(), &mut [0; 512]).unwrap();
    let mut start =
        stores().mvm().args(["start", "--attach", "resting"]).stdout(Stdio::piped()).spawn().unwrap();
    std::io::copy(copy.stdout.as_mut().unwrap(), &mut std::io::sink()).unwrap();
    assert!(copy.wait().unwrap().success());
    let mut said = String::new();
    std::io::Read::read_to_string(start.stdout.as_mut().unwrap(), &mut said).unwrap();
    assert!(start.wait().unwrap().code().is_some() && said == "put\n", "{said}");
}

#[test]
fn a_container_that_left_nothing_says_so() {
    let container = Container("forgotten");
    let options = ["--name", "forgotten", "--network", "none", "--storage-opt", "memory"];
    let ran = container.mvm(&[&["run"], &options[..], &[IMAGE, "true"]].concat());
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    let line = container.refused(&["forgotten:/etc/passwd", "/tmp/none"]);
    assert!(line.contains("its changes were in memory, and went with its end"), "{line}");
}
