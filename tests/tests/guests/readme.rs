//! README.md, to the letter.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use tests::Guest;

/// The commands of README.md run one after the other in an empty folder, as a user types them into one terminal; those
/// below the VM that has a name go into another terminal while it runs.
#[test]
fn the_commands_of_the_readme_work() {
    let readme = include_str!("../../../README.md");
    let blocks: Vec<&str> =
        readme.split("```sh\n").skip(1).filter_map(|rest| rest.split("\n```").next()).collect();
    let named =
        blocks.iter().position(|block| block.contains("mvm boot") && block.contains("--name")).unwrap();
    let (first, other, last) = (&blocks[..=named], blocks[named + 1], &blocks[named + 2..]);
    assert!(blocks.len() >= 5 && other.contains("mvm stop web"), "{blocks:?}");
    let script = [first, last].concat().join("\n");

    let home = TempDir::new().unwrap();
    let folder = home.path().join("folder");
    fs::create_dir(&folder).unwrap();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    std::os::unix::fs::symlink(sources, home.path().join("mvm")).unwrap();
    fs::write(home.path().join("script"), &script).unwrap();
    let terminal = |script: &[&str]| {
        let mut command = Command::new("sh");
        command.args(script).current_dir(&folder).env("HOME", home.path());
        // Root's images are otherwise those of the host.
        command.env("MVM_DATA_DIR", home.path().join("data")).env_remove("MVM_ASSETS");
        // As a login shell has it, and what else is found by the home directory.
        let path = env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}/.local/bin:{path}", home.path().display()));
        let old_home = PathBuf::from(env::var_os("HOME").unwrap());
        for (variable, folder) in
            [("CARGO_HOME", ".cargo"), ("RUSTUP_HOME", ".rustup"), ("XDG_CACHE_HOME", ".cache")]
        {
            command.env(variable, env::var_os(variable).unwrap_or(old_home.join(folder).into()));
        }
        command
    };

    let command = terminal(&["-e", "../script"]);
    let mut guest = Guest::spawn(command, TempDir::new().unwrap(), Duration::from_secs(600));
    for (index, boot) in script.lines().filter(|line| line.starts_with("mvm boot ")).enumerate() {
        guest.wait_for_times("init: started", index + 1);
        if boot.contains("--name") {
            let output = terminal(&["-ec", other]).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
            assert!(text.contains("web") && text.contains("Up "), "{text}");
        } else if !boot.contains("id=script") {
            guest.type_text("poweroff -f\n");
        }
    }
    let outcome = guest.finish().expect_code(0).expect_line("exit code 7");
    let outcome = outcome.expect_line("hello from a container").expect_line("the container ended with 3");
    let outcome = outcome.expect_line("ready").expect("Exited (0)");
    assert!(home.path().join(".local/share/man/man1/mvm-boot.1").exists(), "{outcome}");
}
