//! Commands whose VM, copy or image finds no space on the host's disk.

use std::process::{Command, Stdio};
use std::time::Instant;

use tempfile::TempDir;

use super::super::containers::{output, text};
use crate::counts::{Random, count, report};

/// Runs each command on a disk that has no room, or a little: it succeeds, or says why not in one line. What was there
/// is there afterwards, and nothing else.
const SCRIPT: &str = r#"
    mount -t tmpfs -o size=128m none "$1" || exit 77
    cd "$2"; export MVM_DATA_DIR="$1" MVM_RUNTIME_DIR="$2/run" IMAGE=localhost/busybox
    mkdir run
    "$mvm" load -qi "$image" >/dev/null
    "$mvm" run -d --name base --network none -v kept:/kept $IMAGE sh -c 'echo content >/kept/file; exec sleep 1000' >/dev/null
    truth() {
        "$mvm" ps -a --format '{{.Names}} {{.State}}' && "$mvm" images -a -q && "$mvm" volume ls -q &&
            "$mvm" exec base cat /kept/file && find "$1" "$2" | grep -v events.log | sort
    }
    before=$(truth "$1" "$2/run") || echo "nothing to begin with"
    # What a guest has not written to its disk by then is lost with the disk's space.
    "$mvm" exec base sync
    say() {
        code=0
        "$mvm" "$@" >out 2>err || code=$?
        lines=$(grep -c '^mvm: ' err)
        [ $code = 0 ] || [ "$lines" = 1 ] || { echo "$left bytes, $*: $code"; cat err; }
    }
    check() {
        "$mvm" rm -fv new >/dev/null && "$mvm" rmi -f local:1 >/dev/null && "$mvm" image prune -f >/dev/null ||
            echo "$left bytes, $*: no way back"
        mount -o remount,size=128m "$1"
        [ "$(truth "$1" "$2/run" 2>&1)" = "$before" ] || { echo "$left bytes, $3:"; truth "$1" "$2/run"; }
    }
    for left in $bytes; do
        # It fails where more has been written meanwhile.
        fill() {
            for attempt in 1 2 3 4 5 6 7 8 9; do
                mount -o remount,size=$(($(df -B1 --output=used "$1" | tail -1) + left)) "$1" 2>/dev/null && return
            done
            echo "cannot fill it"
        }
        fill "$1"; say run -d --name new --network none $IMAGE sleep 1000; check "$1" "$2" run
        fill "$1"; say create --name new --network none -v /anonymous $IMAGE true; check "$1" "$2" create
        fill "$1"; say commit base local:1; check "$1" "$2" commit
        fill "$1"; say cp -q base:/bin/busybox "$1/copy"; rm -rf "$1/copy"; check "$1" "$2" cp
        fill "$1"; say exec base true; [ $code = 0 ] || echo "exec: $code"; check "$1" "$2" exec
        "$mvm" run -d --name new --network none $IMAGE sleep 1000 >/dev/null
        fill "$1"; say rm -f new; [ $code = 0 ] || echo "rm: $code"; check "$1" "$2" rm
    done
    "$mvm" rm -f base >/dev/null
    "$mvm" run --rm --network none -v kept:/kept $IMAGE cat /kept/file
"#;

#[test]
fn commands_on_a_full_disk_lose_nothing_and_leave_nothing() {
    let (start, times, mut random) = (Instant::now(), count("DISKS", 1), Random::of("full"));
    let (directory, mount) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    // The first time nothing is left at all.
    let bytes = (0..times).map(|number| if number == 0 { 0 } else { random.below(1 << (12 + number % 11)) });
    let bytes: Vec<String> = bytes.map(|bytes| bytes.to_string()).collect();
    let mut shell = Command::new("unshare");
    shell.args(["--mount", "sh", "-c", SCRIPT, "sh"]).arg(mount.path()).arg(directory.path());
    shell.env("mvm", tests::mvm()).env("image", tests::container_image()).env("bytes", bytes.join(" "));
    shell.stdin(Stdio::null());
    shell.env("MVM_ASSETS", tests::container_assets());
    let output = output(shell);
    assert_eq!(text(&output.stdout), "content\n", "{}", text(&output.stderr));
    report("commands on a full disk", 6 * times, start, "");
}
