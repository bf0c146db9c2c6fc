//! Volumes, folders, files and sockets of the host in containers.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use tempfile::TempDir;
use tests::{locks_program, vsock_program};

use super::containers::{IMAGE, run, stores, text};
use super::life::{mvm, said};

/// Runs a script in a container with these options; what it prints.
fn script(options: &[&str], script: &str) -> String {
    let output = ran(options, script);
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

fn ran(options: &[&str], script: &str) -> Output {
    run(&[&["--rm", "--network", "none"], options, &[IMAGE, "sh", "-c", script]].concat())
}

/// A container that says a line and waits for one.
struct Waiting {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Waiting {
    fn start(options: &[&str], script: &str) -> Self {
        let mut command = stores().mvm();
        command.args(["run", "--rm", "-i", "--network", "none"]).args(options);
        command.args([IMAGE, "sh", "-c", script]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut waiting = Self { output: BufReader::new(child.stdout.take().unwrap()), child };
        assert_eq!(waiting.line(), "ready");
        waiting
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn end(mut self) -> String {
        drop(self.child.stdin.take());
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).unwrap();
        assert!(self.child.wait().unwrap().success(), "{rest}");
        rest
    }
}

#[test]
fn what_is_in_a_volume_survives_and_one_vm_has_it_at_a_time() {
    let first = Waiting::start(
        &["-v", "kept:/data"],
        "echo text >/data/file; echo ready; read x; echo more >>/data/file",
    );
    let refused = ran(&["-v", "kept:/data"], "true");
    let line = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(125), "{line}");
    assert!(
        line.contains("volume kept is in use by another container") && line.lines().count() == 1,
        "{line}"
    );
    let line = text(&mvm(&["volume", "rm", "kept"]).stderr);
    assert!(line.contains("volume kept is in use by "), "{line}");
    first.end();
    let seen = script(
        &["-v", "kept:/data:ro"],
        "cat /data/file; touch /data/x 2>/dev/null; echo $?; df -k /data | awk 'NR == 2 {print ($2 > 18000000)}'",
    );
    assert_eq!(seen, "text\nmore\n1\n1\n");
    // A volume of its own for each, which goes with its container.
    let before = said(&["volume", "ls", "-q"]);
    assert_eq!(
        script(&["-v", "/scratch"], "touch /scratch/x; ls /scratch; grep -c ' /scratch ext4 ' /proc/mounts"),
        "x\n1\n"
    );
    assert_eq!(said(&["volume", "ls", "-q"]), before);
    // Two places, a size, and a VM that is killed.
    said(&["volume", "create", "-o", "size=256M", "small"]);
    let sizes = "mkdir /a/sub; ls /b; df -k /a | awk 'NR == 2 {print ($2 < 262144)}'; sync; touch /b/flushed; sync; echo ready; read x";
    let mut two = Waiting::start_two(sizes);
    assert_eq!(two.line(), "ready");
    two.child.kill().unwrap();
    two.child.wait().unwrap();
    assert_eq!(script(&["-v", "small:/c"], "ls /c"), "flushed\nsub\n");
    said(&["volume", "rm", "small", "kept"]);
}

impl Waiting {
    /// One with the volume `small` in two places, of which the first lines are looked at here.
    fn start_two(script: &str) -> Self {
        let mut command = stores().mvm();
        command.args(["run", "--rm", "-i", "--network", "none", "-v", "small:/a", "-v", "small:/b"]);
        command.args([IMAGE, "sh", "-c", script]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut waiting = Self { output: BufReader::new(child.stdout.take().unwrap()), child };
        assert_eq!([waiting.line(), waiting.line()], ["sub", "1"]);
        waiting
    }
}

/// An image with a directory whose files have owners, modes and links, and a volume there.
fn image_with_content(name: &str) {
    let place = TempDir::new().unwrap();
    let root = place.path().join("root");
    let data = root.join("data");
    fs::create_dir_all(data.join("sub")).unwrap();
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    fs::hard_link(root.join("bin/busybox"), root.join("bin/sh")).unwrap();
    fs::write(data.join("file"), "of the image\n").unwrap();
    fs::set_permissions(data.join("file"), fs::Permissions::from_mode(0o4640)).unwrap();
    chown(data.join("file"), Some(33), Some(44)).unwrap();
    // The owner takes the bit away.
    fs::set_permissions(data.join("file"), fs::Permissions::from_mode(0o4640)).unwrap();
    fs::hard_link(data.join("file"), data.join("sub/again")).unwrap();
    std::os::unix::fs::symlink("../etc/passwd", data.join("link")).unwrap();
    chown(&data, Some(7), Some(8)).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o750)).unwrap();
    let tar = place.path().join("image.tar");
    let made = Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(&root).arg(".").status();
    assert!(made.unwrap().success());
    let changes = ["--change", "VOLUME /data", "--change", "ENV PATH=/bin"];
    said(&[&["import"], &changes[..], &[tar.to_str().unwrap(), name]].concat());
}

#[test]
fn a_new_volume_gets_what_the_image_has_there() {
    let image = "localhost/with-content";
    image_with_content(image);
    let look = "cd /data; busybox stat -c '%n %a %u %g %h' . file sub/again; busybox readlink link; busybox cat file";
    let expected = ". 750 7 8 3\nfile 4640 33 44 2\nsub/again 4640 33 44 2\n../etc/passwd\nof the image\n";
    let look_at = |options: &[&str], script: &str| {
        let output = run(&[&["--rm", "--network", "none"], options, &[image, "sh", "-c", script]].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    // The image's own volume, one by name, and one that several VMs share.
    assert_eq!(look_at(&[], look), expected);
    assert_eq!(look_at(&["-v", "filled:/data"], look), expected);
    said(&["volume", "create", "-d", "shared", "pool"]);
    assert_eq!(look_at(&["-v", "pool:/data"], look), expected);
    // Once only: what was changed stays changed.
    look_at(&["-v", "filled:/data"], "busybox rm -r /data/sub /data/link; echo mine >/data/file");
    assert_eq!(look_at(&["-v", "filled:/data"], "busybox ls /data; busybox cat /data/file"), "file\nmine\n");
    assert_eq!(look_at(&["--mount", "src=empty,dst=/data,volume-nocopy"], "busybox ls /data"), "");
    // A folder of the host is not filled.
    let folder = TempDir::new().unwrap();
    let mount = format!("{}:/data", folder.path().display());
    assert_eq!(look_at(&["-v", &mount], "busybox ls /data"), "");
    said(&["volume", "rm", "filled", "pool", "empty"]);
    said(&["rmi", image]);
}

#[test]
fn a_single_file_shows_nothing_beside_it_even_to_root_of_the_vm() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("file"), "shown\n").unwrap();
    fs::write(path("secret"), "not shown\n").unwrap();
    fs::create_dir(path("other")).unwrap();
    fs::write(path("other/inside"), "").unwrap();
    let mounts = [format!("{}:/etc/given", path("file")), format!("{}:/other:ro", path("other"))];
    let hunt = "cat /etc/given; mkdir /v && mount -t virtiofs mounts /v && ls /v; cat /v/0; ls /v/0/.. 2>/dev/null
        touch /v/new 2>/dev/null; echo $?; rm /v/0 2>/dev/null; echo $?; find /v /etc -name secret | wc -l; echo changed >/etc/given";
    let seen = ran(&["--privileged", "-v", &mounts[0]], hunt);
    assert_eq!(text(&seen.stdout), "shown\n0\nshown\n1\n1\n0\n", "{}", text(&seen.stderr));
    // A folder is what a second mount of the same virtiofs shows, and its host has it read-only.
    let hunt =
        "mkdir /v && mount -t virtiofs mounts /v; find /v | grep -c inside; find / -xdev -name secret | wc -l
        mount -o remount,rw /other; touch /other/x /v/x /v/0/x 2>/dev/null; find /v /other | grep -c x";
    let seen = ran(&["--privileged", "-v", &mounts[1], "-v", &mounts[0]], hunt);
    assert_eq!(text(&seen.stdout), "1\n0\n0\n", "{}", text(&seen.stderr));
    assert_eq!(fs::read_to_string(path("file")).unwrap(), "changed\n");
    // An editor that replaces a file by another one replaces it for the host alone, as with docker.
    let mut container = Waiting::start(
        &["-v", &mounts[0]],
        "echo ready; cat /etc/given; read x; cat /etc/given; echo old >>/etc/given",
    );
    assert_eq!(container.line(), "changed");
    fs::write(path("new"), "replaced\n").unwrap();
    fs::rename(path("new"), path("file")).unwrap();
    assert_eq!(container.end(), "changed\n");
    assert_eq!(fs::read_to_string(path("file")).unwrap(), "replaced\n");
}

#[test]
fn sockets_of_the_host_are_forwarded() {
    let folder = TempDir::new().unwrap();
    let socket = folder.path().join("host.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o660)).unwrap();
    chown(&socket, Some(12), Some(34)).unwrap();
    // Each gets back what it sent, once it has sent all of it.
    let server = std::thread::spawn(move || {
        for _ in 0..4 {
            let (mut stream, _) = listener.accept().unwrap();
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).unwrap();
                stream.write_all(&bytes).unwrap();
            });
        }
    });
    let mounts = [
        format!("{}:/run/given.sock", socket.display()),
        format!("{}:/client:ro", vsock_program().display()),
    ];
    let talk = "stat -c '%F %a %u %g' /run/given.sock; echo hello | /client unix /run/given.sock
        head -c 1000000 /dev/zero | /client unix /run/given.sock | wc -c
        (echo one | /client unix /run/given.sock) & echo two | /client unix /run/given.sock; wait";
    let seen = script(&["-v", &mounts[0], "-v", &mounts[1]], talk);
    let mut lines: Vec<_> = seen.lines().collect();
    lines[3..].sort_unstable();
    assert_eq!(lines, ["socket 660 12 34", "hello", "1000000", "one", "two"]);
    server.join().unwrap();
    // No process listens any more.
    let seen = script(&["-v", &mounts[0], "-v", &mounts[1]], "echo x | /client unix /run/given.sock | wc -c");
    assert_eq!(seen, "0\n");
}

#[test]
fn folders_have_sparse_files_and_locks_and_several_writers() {
    let folder = TempDir::new().unwrap();
    said(&["volume", "create", "-d", "shared", "board"]);
    let mount = format!("{}:/data", folder.path().display());
    let work = "cd /data; truncate -s 1G sparse; echo end >>sparse; sync
        for n in 1 2 3 4; do (for i in $(seq 10); do until mkdir lock 2>/dev/null; do :; done
            echo $(($(cat count 2>/dev/null) + 1)) >new; mv new count; rmdir lock; done) & done; wait
        cat count; stat -c '%s' sparse; for n in 1 2 3; do (head -c 300000 /dev/zero | tr '\\0' $n >part$n) & done; wait; cat part? | md5sum";
    let seen = script(&["-v", &mount], work);
    let expected = {
        let parts = b"123".map(|digit| vec![digit; 300_000]).concat();
        let mut sum = Command::new("md5sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        sum.stdin.take().unwrap().write_all(&parts).unwrap();
        text(&sum.wait_with_output().unwrap().stdout)
    };
    assert_eq!(seen, format!("40\n{}\n{expected}", (1 << 30) + 4));
    let sparse = folder.path().join("sparse").metadata().unwrap();
    assert!(sparse.blocks() * 512 < 1 << 20, "{}", sparse.blocks());
    // Two VMs write to one directory of the host, each to a file of its own and both to the end of a third one.
    let write = |name: &str| {
        // A file that must not be there is made by one of them.
        format!(
            "echo ready; read x; set -C; for i in $(seq 100); do echo {name}$i >>/board/{name}; echo {name}$i >>/board/both
            (: >/board/turn$i) 2>/dev/null && echo $i >>/board/won.{name}; done; true"
        )
    };
    let (one, two) = (
        Waiting::start(&["-v", "board:/board"], &write("a")),
        Waiting::start(&["-v", "board:/board"], &write("b")),
    );
    one.end();
    two.end();
    let seen = script(
        &["-v", "board:/board:ro"],
        "cat /board/a /board/b | wc -l; sort -u /board/a | wc -l; touch /board/x 2>/dev/null; echo $?
        cat /board/won.* | wc -l; sort -u /board/won.* | wc -l; sort -u /board/both | wc -l",
    );
    assert_eq!(seen, "200\n100\n1\n100\n100\n200\n");
    said(&["volume", "rm", "board"]);
}

/// They keep out processes of the same VM only: virtiofsd passes no locks on.
#[test]
fn locks_in_a_folder_are_for_the_processes_of_one_vm() {
    let folder = TempDir::new().unwrap();
    let mounts =
        [format!("{}:/data", folder.path().display()), format!("{}:/locks:ro", locks_program().display())];
    let options = ["-v", &mounts[0], "-v", &mounts[1]];
    let both = "/locks posix /data/p; /locks flock /data/f";
    let holder = Waiting::start(
        &options,
        &format!(
            "/locks posix /data/p /locks flock /data/f sh -c '{both}; echo ready >&3; read x' 3>&1 >/tmp/said; cat /tmp/said"
        ),
    );
    let on_host = |kind: &str, name: &str| {
        let output = Command::new(locks_program()).arg(kind).arg(folder.path().join(name)).output().unwrap();
        text(&output.stdout)
    };
    assert_eq!(script(&options, both), "locked\nlocked\n");
    assert_eq!([on_host("posix", "p"), on_host("flock", "f")], ["locked\n", "locked\n"]);
    assert_eq!(holder.end(), "locked\nlocked\nheld\nheld\n");
}

#[test]
fn many_folders_and_files_take_one_device() {
    let folder = TempDir::new().unwrap();
    let mut options = Vec::new();
    for number in 0..24 {
        let path = folder.path().join(format!("f{number}"));
        fs::create_dir(&path).unwrap();
        fs::write(path.join("name"), format!("{number}\n")).unwrap();
        options.extend(["-v".to_owned(), format!("{}:/many/{number}", path.display())]);
    }
    let options: Vec<_> = options.iter().map(String::as_str).collect();
    let seen = script(
        &options,
        "cat /many/*/name | sort -n | tail -1; ls /many | wc -l; ls -d /sys/bus/virtio/drivers/virtiofs/virtio* | wc -l",
    );
    assert_eq!(seen, "23\n24\n1\n");
}

#[test]
fn temporary_file_systems_have_dockers_options() {
    let options = [
        "--tmpfs",
        "/a:size=1m,mode=700,uid=5,exec",
        "--mount",
        "type=tmpfs,dst=/b,tmpfs-size=2m,tmpfs-mode=0750",
        "--mount",
        "type=tmpfs,dst=/c,ro",
    ];
    let look = "stat -c '%a %u' /a /b; df -k /a /b | awk 'NR > 1 {print $2}'; cp /bin/busybox /a/sh 2>/dev/null; awk '$2 ~ \"^/[abc]$\" {print $2, $4}' /proc/mounts | sed 's/,\\(size\\|inode64\\|relatime\\).*//' | sort; touch /c/x 2>/dev/null; echo $?";
    let seen = script(&options, look);
    let expected = "700 5\n750 0\n1024\n2048\n/a rw,nosuid,nodev\n/b rw,nosuid,nodev,noexec\n/c ro,nosuid,nodev,noexec\n1\n";
    assert_eq!(seen, expected);
}
