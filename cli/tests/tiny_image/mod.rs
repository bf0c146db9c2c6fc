//! A host with an image, for commands that start no VM.

use std::fs;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// A directory with a store that has the image `tiny`.
pub struct Host(pub TempDir);

impl Host {
    /// With nothing but the image.
    pub fn new() -> Self {
        let host = Self(TempDir::new().unwrap());
        let tar = host.0.path().join("tiny.tar");
        fs::write(host.0.path().join("sh"), "no program").unwrap();
        let made = Command::new("tar").arg("-C").arg(host.0.path()).arg("-cf").arg(&tar).arg("sh").status();
        assert!(made.unwrap().success());
        // Nothing in it can boot.
        for name in ["vmlinux", "agent.erofs", "changes.templates"] {
            fs::create_dir_all(host.0.path().join("assets")).unwrap();
            fs::write(host.0.path().join("assets").join(name), "nothing").unwrap();
        }
        host.said(&["import", "--change", "CMD [\"/sh\"]", tar.to_str().unwrap(), "tiny"]);
        host
    }

    /// Runs `mvm`, up to a minute.
    pub fn mvm(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("timeout");
        command.args(["--signal", "KILL", "60", env!("CARGO_BIN_EXE_mvm")]).args(arguments);
        command.env("MVM_DATA_DIR", self.0.path().join("data")).env("XDG_RUNTIME_DIR", self.0.path());
        command.env("MVM_ASSETS", self.0.path().join("assets")).env("XDG_CONFIG_HOME", self.0.path());
        command.env_remove("MVM_LOG").stdin(Stdio::null()).output().unwrap()
    }

    /// What it prints without the last end of a line.
    pub fn said(&self, arguments: &[&str]) -> String {
        let output = self.mvm(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// The line of an error, and the exit code.
    pub fn fails(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = self.mvm(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.lines().count() == 1, "{arguments:?}: {said}");
        (output.status.code(), said)
    }
}
