//! A user: a home directory and a store.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// A directory with a home, a store and images.
pub struct Place(TempDir);

impl Place {
    pub fn new() -> Self {
        let place = Self(TempDir::new().unwrap());
        fs::create_dir(place.path("home")).unwrap();
        fs::create_dir(place.path("run")).unwrap();
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A command with this user's environment.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command.env("HOME", self.path("home")).env("XDG_RUNTIME_DIR", self.path("run"));
        command.env("MVM_DATA_DIR", self.path("data")).current_dir(self.0.path());
        command
    }

    pub fn mvm(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(&program());
        command.args(arguments);
        command
    }

    /// Runs mvm, which succeeds; returns its standard output.
    pub fn succeed(&self, arguments: &[&str]) -> String {
        succeeds(&mut self.mvm(arguments))
    }

    /// Runs mvm, which fails with `code` and one line; returns that.
    pub fn fail(&self, code: i32, arguments: &[&str]) -> String {
        fails(&mut self.mvm(arguments), code)
    }

    /// Makes an archive of docker's with a layer for each of the sizes, whose bytes do not compress.
    pub fn archive(&self, layers: &[usize]) -> PathBuf {
        let directory = TempDir::new_in(self.0.path()).unwrap();
        let mut diff_ids = Vec::new();
        let mut names = Vec::new();
        for (number, size) in layers.iter().enumerate() {
            let name = format!("{number}.tar");
            let content = directory.path().join("content");
            fs::create_dir(&content).unwrap();
            fs::write(content.join(format!("file-{number}")), noise(*size)).unwrap();
            run(Command::new("tar")
                .arg("-cf")
                .arg(directory.path().join(&name))
                .arg("-C")
                .arg(&content)
                .arg("."));
            let sum = run(Command::new("sha256sum").arg(directory.path().join(&name)));
            diff_ids.push(format!("\"sha256:{}\"", sum.split(' ').next().unwrap()));
            names.push(format!("\"{name}\""));
            fs::remove_dir_all(content).unwrap();
        }
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
            diff_ids.join(",")
        );
        fs::write(directory.path().join("config.json"), config).unwrap();
        let manifest =
            format!(r#"[{{"Config":"config.json","RepoTags":["local:1"],"Layers":[{}]}}]"#, names.join(","));
        fs::write(directory.path().join("manifest.json"), manifest).unwrap();
        let archive = self.path("archive.tar");
        run(Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(directory.path()).arg("."));
        archive
    }

    /// The files of a directory of the store.
    pub fn stored(&self, directory: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path("data/images").join(directory)).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// Nothing is half done, and what is there is as it should be.
    pub fn check_store(&self, layers: usize) {
        assert_eq!(self.stored("tmp"), Vec::<PathBuf>::new());
        assert_eq!(self.stored("partial"), Vec::<PathBuf>::new());
        assert_eq!(self.stored("layers").len(), layers);
        let merged = self.stored("merged");
        for image in self.stored("layers").iter().map(|path| path.join("layer.erofs")) {
            run(Command::new("fsck.erofs").arg(image));
        }
        for image in merged.iter().map(|path| path.join("merged.erofs")) {
            assert!(fs::metadata(image).unwrap().len() > 0);
        }
    }
}

/// The program of this build, or for another package's tests the one that MVM_BIN names.
fn program() -> String {
    let built = option_env!("CARGO_BIN_EXE_mvm").map(str::to_owned);
    built.unwrap_or_else(|| std::env::var("MVM_BIN").unwrap())
}

/// Runs a program, which succeeds; returns its standard output.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

pub fn succeeds(command: &mut Command) -> String {
    run(command)
}

/// Runs mvm, which fails with `code` and one line; returns that.
pub fn fails(command: &mut Command, code: i32) -> String {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{command:?}: {}", text(&output));
    assert!(errors.starts_with("mvm: ") && errors.trim_end().lines().count() == 1, "{command:?}: {errors}");
    errors
}

pub fn text(output: &Output) -> String {
    format!(
        "{}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Bytes that do not compress.
fn noise(length: usize) -> Vec<u8> {
    use std::io::Read;
    let mut bytes = vec![0; length];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    bytes
}

pub fn write_executable(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}
