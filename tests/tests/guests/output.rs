//! Much output of a container.

use std::io::Read;
use std::process::Command;

use tempfile::TempDir;

use super::containers::{start, stores, text, with_input};

const PIECES: usize = 64;
const PIECE: usize = 1 << 20;
/// Writes `PIECES` times the number of the piece and a file of `PIECE` bytes.
const SCRIPT: &str = "head -c 1048576 /dev/urandom >/tmp/piece; echo ready; i=0
    while [ $i -lt 64 ]; do echo $i; cat /tmp/piece; i=$((i + 1)); done; sha256sum </tmp/piece";

#[test]
fn much_output_comes_as_it_was_written() {
    let directory = TempDir::new().unwrap();
    let (mut child, mut output) = start(directory.path(), "loud", &[], SCRIPT);
    let mut bytes = vec![0; 16 << 20];
    output.read_exact(&mut bytes).unwrap();
    // The agent is a batch process while output flows, and its further processes are not.
    let mut exec = stores().mvm();
    exec.arg("--runtime-dir").arg(directory.path());
    let policy =
        exec.args(["exec", "loud", "cut", "-d", " ", "-f", "41", "/proc/self/stat"]).output().unwrap();
    assert_eq!((text(&policy.stdout).as_str(), policy.status.code()), ("0\n", Some(0)));
    output.read_to_end(&mut bytes).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));

    let mut rest = &*bytes;
    let mut first = None;
    for number in 0..PIECES {
        rest = rest.strip_prefix(format!("{number}\n").as_bytes()).unwrap();
        let (piece, behind) = rest.split_at(PIECE);
        let first = first.get_or_insert(piece);
        assert!(piece == *first, "piece {number} is another one");
        rest = behind;
    }
    let sum = with_input(Command::new("sha256sum"), first.unwrap());
    assert_eq!(text(rest), text(&sum.stdout));
}
