//! The help of each command is readable at every usual width of a terminal.

#![allow(missing_docs, reason = "tests are named after what they show")]
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::process::Command;

use rstest::rstest;

/// Text is not wrapped wider than this, whatever the terminal's width.
const WIDEST: usize = 100;

fn help(command: &str, flag: &str, columns: usize) -> String {
    let mut program = Command::new(env!("CARGO_BIN_EXE_mvm"));
    program.args(command.split_whitespace()).arg(flag).env("COLUMNS", columns.to_string());
    let output = program.output().unwrap();
    assert!(output.status.success(), "mvm {command} {flag}");
    String::from_utf8(output.stdout).unwrap()
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// The commands that a help lists.
fn listed(help: &str) -> Vec<String> {
    let Some((_, list)) = help.split_once("Commands:\n") else { return Vec::new() };
    let list = list.split_once("\n\n").unwrap().0;
    list.lines().map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
}

/// Every command, with the empty one for mvm itself.
fn commands() -> Vec<String> {
    let names = listed(&help("", "-h", 80));
    let inner = names.iter().flat_map(|name| {
        let inner = listed(&help(name, "-h", 80));
        inner.into_iter().map(move |inner| format!("{name} {inner}"))
    });
    let commands: Vec<_> = std::iter::once(String::new()).chain(names.iter().cloned()).chain(inner).collect();
    assert!(commands.len() > 20, "{commands:?}");
    commands
}

#[rstest]
fn no_line_is_too_wide_or_too_narrow(
    #[values("-h", "--help")] flag: &str,
    #[values(80, 100, 200)] columns: usize,
) {
    for command in commands() {
        let text = help(&command, flag, columns);
        assert!(
            text.contains(&format!("Usage: mvm {command}")),
            "mvm {command} {flag} is that of another: {text}"
        );
        let lines: Vec<&str> = text.lines().collect();
        for pair in lines.windows(2) {
            let &[line, next] = pair else { unreachable!() };
            let place = format!("mvm {command} {flag} at {columns} columns: {line:?}\n{text}");
            assert!(line.chars().count() <= columns.min(WIDEST), "too wide: {place}");
            // The text of an option: a line ends where the next word does not fit.
            if indent(line) == 10
                && indent(next) == 10
                && !line.trim().is_empty()
                && !next.trim().is_empty()
                && !line.ends_with(']')
            {
                let next_word = next.split_whitespace().next().unwrap();
                assert!(line.len() + 1 + next_word.len() > columns.min(WIDEST), "broken early: {place}");
            }
            let words = |line: &str| line.split_whitespace().count();
            assert!(
                words(line) != 1 || words(next) != 1 || indent(line) != indent(next),
                "a word a line: {place}"
            );
        }
    }
}

#[test]
fn short_help_fits_a_screen_and_says_where_there_is_more() {
    for command in commands() {
        let short = help(&command, "-h", 80);
        // mvm itself lists all commands.
        let most = if command.is_empty() { 62 } else { 40 };
        assert!(
            short.lines().count() <= most,
            "mvm {command} -h has {} lines:\n{short}",
            short.lines().count()
        );
        if help(&command, "--help", 80).lines().count() > short.lines().count() + 1 {
            assert!(short.contains("--help"), "{short}");
        }
    }
}

#[test]
fn long_help_has_headings_and_examples() {
    for command in commands() {
        let long = help(&command, "--help", 80);
        assert!(long.contains("\nExamples:\n"), "mvm {command} --help:\n{long}");
    }
    let boot = help("boot", "--help", 80);
    for heading in ["Kernel", "Machine", "Disks", "Network", "Shared folders", "Console and debugging"] {
        assert!(boot.contains(&format!("\n{heading}:\n")), "no {heading}:\n{boot}");
    }
    // What stands in no group stands above the groups.
    let run = help("run", "--help", 80);
    let (above, groups) = run.split_once("\nNetwork:\n").unwrap();
    for own in ["  <IMAGE>\n", "  [COMMAND]...\n", "  --stop-timeout ", "  --log-opt "] {
        assert!(above.contains(own) && !groups.contains(own), "{own}:\n{run}");
    }
}

/// A value's name is one short word; its syntax is in the text.
#[test]
fn value_names_are_short() {
    for command in commands() {
        for line in help(&command, "--help", 80).lines().filter(|line| line.trim_start().starts_with('-')) {
            let Some((_, rest)) = line.split_once('<') else { continue };
            let name = rest.split_once('>').unwrap().0;
            assert!(name.len() <= 8 && name.bytes().all(|byte| byte.is_ascii_uppercase()), "{line}");
        }
    }
}

#[test]
fn a_commands_own_options_stand_before_those_of_all_commands() {
    let common = ["--log-level <LEVEL>", "--runtime-dir <DIR>", "-h, --help"];
    let mut own = 0;
    for command in commands()
        .into_iter()
        .filter(|command| !matches!(command.trim_start_matches("container "), "" | "boot" | "run" | "create"))
    {
        let text = help(&command, "--help", 80);
        let options = text.split_once("\nOptions:\n").unwrap().1;
        let names: Vec<_> = options
            .lines()
            .filter(|line| indent(line) < 10 && line.trim_start().starts_with('-'))
            .map(str::trim)
            .collect();
        let first = names.iter().position(|name| common.contains(name)).unwrap();
        assert_eq!(names[first..], common, "mvm {command}:\n{text}");
        own += first;
    }
    assert!(own > 5, "{own} options of commands were looked at");
}
