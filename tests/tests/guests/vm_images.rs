//! VMs whose root has an image's files: `mvm boot --rootfs image:…`.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;
use tests::{Boot, Guest};

use super::containers::{IMAGE, stores, text, with_input};

const WATCHDOG: Duration = Duration::from_secs(300);

/// Boots `root` as a VM called "imaged", which is found in `place`.
fn boot(place: &TempDir, root: &str, arguments: &str) -> Guest {
    let boot = Boot::new()
        .flag("--rootfs", root)
        .flag("--name", "imaged")
        .flag("--runtime-dir", place.path().join("run"));
    let (mut command, directory) = boot.append(arguments).command();
    // Where the images are.
    for (name, value) in stores().mvm().get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    Guest::spawn(command, directory, WATCHDOG)
}

fn mvm(place: &TempDir, arguments: &[&str]) -> Command {
    let mut command = stores().mvm();
    command.arg("--runtime-dir").arg(place.path().join("run")).args(arguments);
    command
}

fn exec(place: &TempDir, script: &str) -> Output {
    mvm(place, &["exec", "imaged", "sh", "-c", script]).output().unwrap()
}

#[test]
fn an_image_with_an_init_boots_and_what_it_writes_goes_with_it() {
    let place = TempDir::new().unwrap();
    for root in [format!("image:{IMAGE},memory"), format!("image:{IMAGE}")] {
        let mut guest = boot(&place, &root, "");
        // busybox's init.
        guest.wait_for("Please press Enter to activate this console");
        let script = "readlink /proc/1/exe; grep ' / ' /proc/mounts | cut -d' ' -f1-3; test -e /written || echo new
            echo x >/written; mkdir /root/d && rm /etc/group && ls /dev/vda /dev/null; ls /run 2>/dev/null | wc -l";
        let output = exec(&place, script);
        assert_eq!(
            text(&output.stdout),
            "/bin/init\noverlay / overlay\nnew\n/dev/null\n/dev/vda\n0\n",
            "{}",
            text(&output.stderr)
        );
        let shown = mvm(&place, &["ps", "--json"]).output().unwrap();
        assert!(text(&shown.stdout).contains(&format!("\"image:{IMAGE}\"")), "{}", text(&shown.stdout));
        let ended = exec(&place, "poweroff -f");
        assert_eq!(ended.status.code(), Some(137), "{}", text(&ended.stderr));
        guest.finish().expect_code(0);
    }
}

#[test]
fn an_image_without_an_init_gets_a_shell_and_its_file_keeps_what_is_written() {
    let place = TempDir::new().unwrap();
    let changes = place.path().join("changes.ext4");
    let root = |more: &str| format!("image:{IMAGE},changes={}{more}", changes.display());
    let without = "mvm.init=/nosuch";
    let mut guest = boot(&place, &root(",size=256M"), without);
    guest.wait_for("cannot execute /nosuch: No such file or directory");
    guest.wait_for("the image has no init");
    assert_eq!(exec(&place, "echo by exec >/root/exec").status.code(), Some(0));
    guest.type_text(
        "test -t 0 && tty >/dev/null && echo terminal=$((40 + 2)); echo typed >/root/typed; exit 3\n",
    );
    guest.wait_for("terminal=42");
    guest.finish().expect_code(3);
    assert_eq!(changes.metadata().unwrap().len(), 256 << 20);

    let mut guest = boot(&place, &root(",size=300M"), without);
    guest.wait_for("the image has no init");
    let output = exec(&place, "cat /root/exec /root/typed; df -m / | awk 'NR == 2 { print ($2 > 256) }'");
    assert_eq!(text(&output.stdout), "by exec\ntyped\n1\n", "{}", text(&output.stderr));
    guest.signal(Signal::TERM);
    guest.finish().expect_code(0);
    let guest = boot(&place, &root(",size=256M"), without);
    guest.finish().expect_code(2).expect("does not shrink to 268435456");
}

#[test]
fn an_image_with_nothing_to_run_says_so() {
    let place = TempDir::new().unwrap();
    let tree = place.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), "a file\n").unwrap();
    // A hostile one leads elsewhere with its directories.
    std::os::unix::fs::symlink("/nowhere", tree.join("proc")).unwrap();
    let archive = Command::new("tar").arg("-C").arg(&tree).args(["-c", "."]).output().unwrap().stdout;
    let imported = with_input(mvm(&place, &["import", "-", "localhost/nothing"]), &archive);
    assert!(imported.status.success(), "{}", text(&imported.stderr));
    boot(&place, "image:localhost/nothing", "")
        .finish()
        .expect_code(1)
        .expect("the VM cannot start from its image");
    fs::remove_file(tree.join("proc")).unwrap();
    let archive = Command::new("tar").arg("-C").arg(&tree).args(["-c", "."]).output().unwrap().stdout;
    let imported = with_input(mvm(&place, &["import", "-", "localhost/nothing"]), &archive);
    assert!(imported.status.success(), "{}", text(&imported.stderr));
    let outcome = boot(&place, "image:localhost/nothing", "").finish().expect_code(127);
    outcome.expect("the image has no /bin/sh either").expect("`mvm run` runs its own command");
    let data =
        stores().mvm().get_envs().find(|(name, _)| *name == "MVM_DATA_DIR").unwrap().1.unwrap().to_owned();
    let left = fs::read_dir(Path::new(&data)).unwrap().flatten();
    let left: Vec<_> = left
        .map(|entry| entry.file_name())
        .filter(|name| name.to_string_lossy().contains("scratch"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    let _ = mvm(&place, &["rmi", "localhost/nothing"]).output();
}
