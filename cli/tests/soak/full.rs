//! Disks that are full.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Instant;

use crate::counts::{Random, count, report};
use crate::host::{CASES, Case, Host, check_line};
use crate::kills::registry;
use crate::place::{run, text};

/// A disk of its own for what lies below a directory, in a namespace of mounts.
struct Disk {
    child: Child,
    input: ChildStdin,
}

impl Disk {
    /// `None`, with the reason printed, where this user may not do that.
    fn new(directory: &Path) -> Option<Self> {
        let mut shell = Command::new("unshare");
        let script = "mount -t tmpfs -o size=64m none \"$0\" && echo ready && read -r _";
        shell.args(["--mount", "--", "sh", "-c", script]).arg(directory);
        let mut child = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let input = child.stdin.take().unwrap();
        let disk = Self { child, input };
        if line == "ready\n" {
            return Some(disk);
        }
        let _ = writeln!(std::io::stderr(), "skipped what is done on a full disk: it needs root");
        None
    }

    /// Gives it so many bytes.
    fn resize(&self, directory: &Path, bytes: u64) {
        let mut command = Command::new("nsenter");
        command.arg("--mount").arg(format!("--target={}", self.child.id())).args(["--", "mount", "-o"]);
        run(command.arg(format!("remount,size={bytes}")).arg(directory));
    }

    fn used(&self, directory: &Path) -> u64 {
        let mut command = Command::new("nsenter");
        command.arg("--mount").arg(format!("--target={}", self.child.id())).args(["--", "df", "-B1"]);
        let text = run(command.arg("--output=used").arg(directory));
        text.lines().nth(1).unwrap().trim().parse().unwrap()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.input.write_all(b"end\n");
        let _ = self.child.wait();
    }
}

#[test]
fn commands_on_a_full_disk_lose_nothing_and_leave_nothing() {
    let (registry, times) = (registry(), count("DISKS", 3));
    let mut disk = None;
    let host = Host::new(&registry.host, |data| {
        disk = Disk::new(data);
        disk.as_ref().map(|disk| disk.child.id())
    });
    let Some(disk) = disk else { return };
    let data = host.place.path("data");
    let base = host.truth();
    for case in CASES {
        let (start, mut random, mut failures) = (Instant::now(), Random::of(case.name), 0);
        for number in 0..times {
            for arguments in case.before {
                host.said(arguments);
            }
            let used = disk.used(&data);
            // The first time nothing is left at all.
            let left = if number == 0 { 0 } else { random.below(1 << (10 + number % 12)) };
            disk.resize(&data, used + left);
            let output = host.mvm(case.command).output().unwrap();
            if !output.status.success() {
                check_line(case, &output);
                failures += 1;
            }
            host.check_kept();
            // What makes room works without any.
            if case.is_removal() {
                assert!(output.status.success(), "{} with {left} bytes: {}", case.name, text(&output));
            }
            host.prune();
            disk.resize(&data, 64 << 20);
            host.undo();
            assert_eq!(host.truth(), base, "{} with {left} bytes: {}", case.name, text(&output));
        }
        for arguments in case.before {
            host.said(arguments);
        }
        host.said(case.command);
        host.undo();
        assert_eq!(host.truth(), base, "{}: once more", case.name);
        report(&format!("{} on a full disk", case.name), times, start, &format!("{failures} failed"));
    }
}

impl Case {
    fn is_removal(&self) -> bool {
        ["rmi", "rm"].contains(&self.name) || self.name.ends_with(" rm") || self.name.ends_with(" prune")
    }
}
