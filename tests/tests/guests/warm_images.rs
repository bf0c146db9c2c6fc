//! Containers whose VMs go on from a template of their image, in which their root is mounted.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use super::containers::{IMAGE, text};
use super::warm::Warm;

/// What `mvm run` says of a VM whose root was mounted before.
const OF_IMAGE: &str = " of its image";

/// Runs a container, whose root was mounted before if it `is_of_image`, and returns what it prints.
fn shown(warm: &Warm, is_of_image: bool, arguments: &[&str]) -> String {
    let output = warm.run(true, arguments);
    let said = text(&output.stderr);
    assert_eq!(said.contains(OF_IMAGE), is_of_image, "{arguments:?}: {said}");
    assert!(output.status.success(), "{arguments:?}: {said}");
    text(&output.stdout)
}

#[test]
fn containers_of_one_image_have_its_files_and_differ_from_each_other() {
    let warm = Warm::new();
    // That for all images is made with it.
    warm.said(&["template", "build", "--network", "none", "--rm", IMAGE]);
    let listed = warm.said(&["template", "ls", "--format", "{{.Name}} {{.Image}}"]);
    let mut listed: Vec<_> = listed.lines().collect();
    listed.sort_unstable_by_key(|line| line.len());
    assert!(listed.len() == 2 && listed[0].ends_with("-none -"), "{listed:?}");
    assert!(listed[1].contains("-rm sha256:"), "{listed:?}");
    let script = "cat /proc/sys/kernel/random/uuid /proc/sys/kernel/random/boot_id; hostname; \
                  head -c 16 /dev/urandom | md5sum; grep -c . /proc/self/maps; head -1 /proc/self/maps";
    let lines: Vec<Vec<String>> = (0..3)
        .map(|_| shown(&warm, true, &[IMAGE, "sh", "-c", script]).lines().map(str::to_owned).collect())
        .collect();
    for line in 0..4 {
        let different: BTreeSet<_> = lines.iter().map(|lines| &lines[line]).collect();
        assert_eq!(different.len(), 3, "{lines:#?}");
    }
    // All of the root is as where the image is mounted for the container, and what one writes is its own.
    let files = "test ! -e /new && echo new >/new && rm /bin/vi && cat /new; \
                 find / -xdev ! -name new | sort | xargs stat -c '%n %F %a %u %g %s'; df -k / | tail -1 | cut -c1-30";
    let of_image = shown(&warm, true, &[IMAGE, "sh", "-c", files]);
    assert!(of_image.starts_with("new\n") && of_image.lines().count() > 20, "{of_image}");
    assert_eq!(shown(&warm, true, &[IMAGE, "sh", "-c", files]), of_image);
    let cold = text(&warm.run(false, &["--cold", IMAGE, "sh", "-c", files]).stdout);
    assert_eq!(cold, of_image);
    let commands = ["-u", "1000:1000", "-w", "/tmp/made", "--tmpfs", "/t", "-v", "data:/data", "--init"];
    let script = "id -u; pwd; echo x >/t/x && cat /t/x; ls -d /data; ps | head -2 | tail -1";
    let options = shown(&warm, true, &[&commands[..], &[IMAGE, "sh", "-c", script]].concat());
    assert!(options.starts_with("1000\n/tmp/made\nx\n/data\n"), "{options}");
    // What has a root of its own kind goes on from the other one.
    for option in [&["--privileged"][..], &["--read-only"], &["--storage-opt", "size=1g"]] {
        assert_eq!(shown(&warm, false, &[option, &[IMAGE, "echo", "runs"]].concat()), "runs\n");
    }
    // So does a container that is kept: there is none for these yet.
    let run = ["--log-level", "info", "run", "--network", "none", "--name", "kept", IMAGE, "true"];
    let said = text(&warm.mvm(&run).output().unwrap().stderr);
    assert!(said.contains("goes on from template") && !said.contains(OF_IMAGE), "{said}");
    let whole = warm.said(&["template", "verify"]);
    assert!(whole.lines().count() == 2 && whole.lines().all(|line| line.ends_with("  whole")), "{whole}");
    // One that is damaged leaves the other one.
    let name = listed[1].split(' ').next().unwrap();
    let disk = warm.path().join("templates").join(name).join("changes.templates");
    fs::remove_file(&disk).unwrap();
    fs::write(&disk, "no disk").unwrap();
    assert!(warm.mvm(&["template", "verify"]).output().unwrap().status.code() == Some(2));
    let output = warm.run(true, &[IMAGE, "true"]);
    assert!(!output.status.success() && text(&output.stderr).contains("are damaged"), "{output:?}");
    fs::remove_file(&disk).unwrap();
    assert_eq!(shown(&warm, false, &[IMAGE, "echo", "runs"]), "runs\n");
    warm.said(&["rm", "kept"]);
}

#[test]
fn a_container_that_is_kept_lives_on_from_its_image_s_template_as_any() {
    let warm = Warm::new();
    warm.said(&["template", "build", "--network", "none", IMAGE]);
    let run = ["--log-level", "info", "run", "-d", "--network", "none", "--name", "long"];
    let command = [IMAGE, "sh", "-c", "echo run >>/runs; exec sleep 1000"];
    warm.said(&[&run[..], &command].concat());
    let runs = |name: &str| warm.said(&["exec", name, "cat", "/runs"]);
    assert_eq!(runs("long"), "run\n");
    warm.said(&["exec", "long", "sh", "-c", "echo kept >/file; mkdir /made"]);
    assert_eq!(warm.said(&["diff", "long"]), "A /file\nA /made\nA /runs\n");
    warm.said(&["fork", "long", "--name", "copy"]);
    assert_eq!(warm.said(&["exec", "copy", "cat", "/file"]), "kept\n");
    warm.said(&["pause", "--save", "long"]);
    warm.said(&["resume", "long"]);
    warm.said(&["stop", "-t", "5", "long"]);
    // Its disk is not that of the template any more: it goes on from the other one.
    warm.said(&["start", "long"]);
    assert_eq!(runs("long"), "run\nrun\n");
    let made = warm.said(&["commit", "long", "localhost/made"]);
    assert_eq!(warm.said(&["diff", "long"]), "A /file\nA /made\nA /runs\n");
    warm.said(&["kill", "long"]);
    warm.said(&["start", "long"]);
    assert_eq!(runs("long"), "run\nrun\nrun\n");
    warm.said(&["rm", "-f", "long", "copy"]);
    // The new image has a template of its own, which goes with it.
    warm.said(&["template", "build", "--network", "none", "--rm", "localhost/made"]);
    assert_eq!(shown(&warm, true, &["localhost/made", "cat", "/file"]), "kept\n");
    let images = || warm.said(&["template", "ls", "--format", "{{.Image}}"]);
    assert!(images().contains(made.trim()), "{}", images());
    warm.said(&["rmi", "localhost/made"]);
    warm.said(&["template", "build", "--network", "none", IMAGE]);
    assert!(!images().contains(made.trim()), "{}", images());
}

#[test]
fn the_template_of_an_image_is_made_when_a_container_of_it_went_on_from_the_other_one() {
    let warm = Warm::new();
    let folder = warm.path().join("given");
    fs::create_dir(&folder).unwrap();
    let volume = format!("{}:/given", folder.display());
    warm.said(&["template", "build", "--network", "none", "--folders"]);
    warm.configure("auto");
    let write = ["-v", &volume, IMAGE, "sh", "-c", "echo x >>/given/file; cat /given/file"];
    assert_eq!(shown(&warm, false, &write), "x\n");
    let deadline = Instant::now() + Duration::from_secs(120);
    warm.wait_until(deadline, || warm.said(&["template", "ls"]).contains("-rm "));
    assert_eq!(shown(&warm, true, &write), "x\nx\n");
    assert_eq!(fs::read_to_string(folder.join("file")).unwrap(), "x\nx\n");
}
