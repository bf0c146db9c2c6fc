//! Manual pages and completion scripts, as the programs that read them take them.

#![allow(missing_docs, reason = "tests are named after what they show")]
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use rstest::rstest;
use tempfile::TempDir;

fn mvm(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_mvm")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs `program`; `None`, with the reason printed, where it is not installed.
fn run(program: &str, arguments: &[&str], directory: &Path) -> Option<Output> {
    let bin = Path::new(env!("CARGO_BIN_EXE_mvm")).parent().unwrap().display();
    let path = format!("{bin}:{}", std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("PATH", path)
        .env("HOME", directory)
        .env("MVM_DATA_DIR", directory.join("data"))
        .env("XDG_RUNTIME_DIR", directory)
        .current_dir(directory);
    let output = command.output();
    if output.is_err() {
        eprintln!("skipped: {program} is not installed");
    }
    output.ok()
}

fn pages() -> (TempDir, Vec<String>) {
    let directory = TempDir::new().unwrap();
    mvm(&["man", "--all", directory.path().to_str().unwrap()]);
    let names =
        fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names: Vec<_> = names.collect();
    assert!(names.len() > 10, "{names:?}");
    (directory, names)
}

#[test]
fn manual_pages_are_well_formed() {
    let (directory, names) = pages();
    for name in names {
        let Some(output) = run("man", &["--warnings=w", "-E", "UTF-8", "-l", &name], directory.path()) else {
            return;
        };
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && errors.is_empty(), "{name}: {errors}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("SYNOPSIS"), "{name}");
    }
}

#[test]
fn manual_pages_have_the_usual_sections_and_refer_to_pages_that_exist() {
    let (directory, names) = pages();
    let names: BTreeSet<_> = names.into_iter().collect();
    for name in &names {
        let page = fs::read_to_string(directory.path().join(name)).unwrap();
        let sections: Vec<_> = page.lines().filter_map(|line| line.strip_prefix(".SH ")).collect();
        for section in [
            "NAME",
            "SYNOPSIS",
            "DESCRIPTION",
            "OPTIONS",
            "EXAMPLES",
            "EXIT STATUS",
            "ENVIRONMENT",
            "SEE ALSO",
        ] {
            assert_eq!(
                sections.iter().filter(|found| **found == section).count(),
                1,
                "{name}: {section} in {sections:?}"
            );
        }
        assert!(!sections.contains(&"EXTRA"));
        for line in page.lines().filter_map(|line| line.strip_prefix(".BR ")) {
            let Some((page, _)) = line.split_once(" (1)") else { continue };
            assert!(names.contains(&format!("{}.1", page.replace('\\', ""))), "{name} refers to {page}");
        }
    }
    let boot = fs::read_to_string(directory.path().join("mvm-boot.1")).unwrap();
    for heading in ["Kernel", "Machine", "Disks", "Network"] {
        assert!(boot.contains(&format!(".SS {heading}\n")), "{heading}");
    }
    let stop = fs::read_to_string(directory.path().join("mvm-stop.1")).unwrap();
    let synopsis =
        "[\\fB\\-\\-time\\fR \\fISECONDS\\fR]\n[\\fB\\-\\-signal\\fR \\fISIGNAL\\fR]\n\\fINAME\\fR...";
    assert!(stop.contains(synopsis), "{stop}");
}

/// Every option of the help is in the manual page and is offered by completion.
#[test]
fn pages_and_completions_have_every_option() {
    let help = mvm(&["boot", "--help"]);
    let words = help.split(|character: char| !character.is_ascii_alphanumeric() && character != '-');
    let options: BTreeSet<_> = words.filter(|word| word.len() > 2 && word.starts_with("--")).collect();
    assert!(options.len() > 20, "{options:?}");
    let page = mvm(&["man", "boot"]).replace('\\', "");
    let offered = mvm(&["complete", "--", "boot", "--"]);
    for option in options
        .into_iter()
        .filter(|option| help.contains(&format!("  {option} ")) || help.contains(&format!("  {option}\n")))
    {
        assert!(page.contains(option), "{option} is not in the manual page");
        assert!(offered.contains(&format!("{option}\t")), "{option} is not offered:\n{offered}");
    }
}

#[rstest]
#[case("mvm boot --cons", &["--console"])]
#[case("mvm boot --console s", &["stdio", "subfolder"])]
#[case("mvm boot --console=v", &["virtio", "vmlinux"])]
#[case("mvm kill --signal T", &["TERM"])]
#[case("mvm boot --kernel vml", &["vmlinux"])]
#[case("mvm boot --share s", &["subfolder"])]
#[case("mvm comp", &["completions"])]
#[case("mvm run lo", &["localhost:5000/tools:1"])]
#[case("mvm run localhost:5000/to", &["5000/tools:1"])]
#[case("mvm rmi localhost:5000/tools:", &["1"])]
fn bash_completes(#[case] line: &str, #[case] expected: &[&str]) {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("vmlinux"), "").unwrap();
    fs::create_dir(directory.path().join("subfolder")).unwrap();
    fs::write(directory.path().join("layer.tar"), [0; 1024]).unwrap();
    run(env!("CARGO_BIN_EXE_mvm"), &["import", "layer.tar", "localhost:5000/tools:1"], directory.path())
        .unwrap();
    // As readline splits a line: at blanks and at each '=' and ':'.
    let line = line.replace('=', " = ").replace(':', " : ");
    let words: Vec<_> = line
        .trim_end_matches(|last| last == ' ' && line.ends_with(": "))
        .split(' ')
        .map(|word| format!("'{word}'"))
        .collect();
    let script = format!(
        "compopt() {{ :; }}; eval \"$(mvm completions bash)\"; COMP_WORDS=({}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
         _mvm; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        words.join(" ")
    );
    let Some(output) = run("bash", &["-c", &script], directory.path()) else { return };
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said.lines().collect::<Vec<_>>(), expected, "{}", String::from_utf8_lossy(&output.stderr));
}

#[rstest]
#[case("mvm boot --cons", &["--console"])]
#[case("mvm boot --console s", &["stdio", "subfolder/"])]
#[case("mvm boot --console=v", &["--console=virtio"])]
#[case("mvm kill --signal T", &["TERM"])]
#[case("mvm comp", &["completions"])]
fn fish_completes(#[case] line: &str, #[case] expected: &[&str]) {
    let directory = TempDir::new().unwrap();
    fs::create_dir(directory.path().join("subfolder")).unwrap();
    let script = format!("mvm completions fish | source; complete -C '{line}'");
    let Some(output) = run("fish", &["-c", &script], directory.path()) else { return };
    let said = String::from_utf8_lossy(&output.stdout);
    let words: Vec<_> = said.lines().map(|line| line.split('\t').next().unwrap()).collect();
    assert_eq!(words, expected, "{said}{}", String::from_utf8_lossy(&output.stderr));
}

/// zsh's own completion runs on a terminal only: its function gets what it would show.
#[rstest]
#[case("mvm boot --cons", "--console:Console: stdio, virtio, off or a file [default: stdio]\n")]
#[case("mvm boot --console s", "files\nstdio:serial port on standard input and output\n")]
#[case("mvm stop ", "")]
fn zsh_completes(#[case] line: &str, #[case] expected: &str) {
    let directory = TempDir::new().unwrap();
    let words: Vec<_> = line.split(' ').map(|word| format!("'{word}'")).collect();
    let script = format!(
        "_describe() {{ print -l -- \"${{(@P)3}}\"; }}; _files() {{ print files; }}; compdef() {{ :; }}; \
         eval \"$(mvm completions zsh)\"; words=({}); CURRENT=$#words; _mvm",
        words.join(" ")
    );
    let Some(output) = run("zsh", &["-f", "-c", &script], directory.path()) else { return };
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said, expected, "{}", String::from_utf8_lossy(&output.stderr));
}
