//! Images that other programs have built and saved.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::containers::{stores, text};
use super::life::said;
use super::peers::Tool;

/// Builds in two layers: the second one removes and replaces what the first one has.
const ON_SCRATCH: &str = r#"FROM scratch
COPY first /
COPY --chown=7:8 second /data/
ENV PATH=/bin A="1 2"
WORKDIR /data
LABEL made=podman
ENTRYPOINT ["sh", "-c"]
CMD ["cat file; stat -c '%u:%g %a' file; readlink /data/link; echo $A; pwd"]
"#;

/// The same with a command that runs in the image.
const ON_BUSYBOX: &str = r#"FROM localhost/busybox
RUN rm -r /var/www /etc/group; mkdir -p /data/old; echo old >/data/old/file; chmod 4750 /data/old/file
RUN rm -r /data/old; mkdir /data/old; echo new >/data/new; ln /data/new /data/again
USER 1000:1001
STOPSIGNAL SIGINT
CMD ["sh", "-c", "cat /data/new; ls /data/old; test -e /etc/group; echo $?; stat -c %h /data/new; id -u; id -g"]
"#;

fn done(mut command: Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// A directory to build in, with the file that says how.
fn context(how: &str) -> TempDir {
    let place = TempDir::new().unwrap();
    let path = |name: &str| place.path().join(name);
    fs::write(path("Dockerfile"), how).unwrap();
    for directory in ["first/bin", "first/data", "second"] {
        fs::create_dir_all(path(directory)).unwrap();
    }
    fs::copy("/bin/busybox", path("first/bin/busybox")).unwrap();
    for applet in ["sh", "cat", "stat", "readlink"] {
        std::os::unix::fs::symlink("busybox", path("first/bin").join(applet)).unwrap();
    }
    std::os::unix::fs::symlink("file", path("first/data/link")).unwrap();
    fs::write(path("first/data/file"), "first\n").unwrap();
    fs::write(path("second/file"), "second\n").unwrap();
    place
}

/// What the image in an archive, which is called `name`, prints when it is run.
fn prints(archive: &Path, name: &str) -> String {
    let loaded = said(&["load", "-i", archive.to_str().unwrap()]);
    assert_eq!(loaded, format!("Loaded image: {name}"));
    let printed = said(&["run", "--rm", "--network", "none", name]);
    said(&["rmi", name]);
    printed
}

#[test]
fn what_podman_has_built_runs_from_either_archive() {
    let place = context(ON_SCRATCH);
    let podman = |arguments: &[&str]| {
        let mut command = stores().podman()?;
        command.args(arguments).current_dir(place.path());
        Some(done(command))
    };
    if podman(&["build", "-q", "--network", "none", "-t", "localhost/podmans:1", "."]).is_none() {
        return eprintln!("skipped: there is no podman");
    }
    for format in ["docker-archive", "oci-archive"] {
        podman(&["save", "-q", "--format", format, "-o", format, "localhost/podmans:1"]);
        let printed = prints(&place.path().join(format), "localhost/podmans:1");
        assert_eq!(printed, "second\n7:8 644\nfile\n1 2\n/data", "{format}");
    }
}

#[test]
fn what_docker_has_built_runs() {
    let place = context(ON_BUSYBOX);
    let docker = |arguments: &[&str]| {
        let mut command = Tool::Docker.command()?;
        command.args(arguments).env("DOCKER_BUILDKIT", "0").current_dir(place.path());
        Some(done(command))
    };
    if docker(&["build", "-q", "--network", "none", "-t", "localhost/dockers:1", "."]).is_none() {
        return eprintln!("skipped: there is no docker");
    }
    docker(&["save", "-o", "saved", "localhost/dockers:1"]);
    let printed = prints(&place.path().join("saved"), "localhost/dockers:1");
    assert_eq!(printed, "new\n1\n2\n1000\n1001");
}
