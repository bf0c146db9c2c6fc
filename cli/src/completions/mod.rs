//! `mvm completions` prints a script for a shell, and `mvm complete` answers these scripts.
//!
//! The scripts only ask. The candidates are found here, from the same description of the command line that parses it,
//! and from the VMs that run.

use clap::{Arg, ArgAction, Args, Command, CommandFactory, ValueEnum};
use instance::Registry;

use crate::process::ExitCode;
use crate::{Cli, exit_code, print};

const EXAMPLES: &str = "\
Examples:
  mvm completions bash > ~/.local/share/bash-completion/completions/mvm
  mvm completions fish > ~/.config/fish/completions/mvm.fish
  mvm completions zsh > /usr/local/share/zsh/site-functions/_mvm";

/// The supported shells.
#[derive(Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Fish,
    Zsh,
}

/// Arguments of `mvm completions`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct CompletionsCommand {
    /// Shell to print the script for
    shell: Shell,
}

impl CompletionsCommand {
    /// Prints the script.
    pub fn run(self) -> ExitCode {
        let script = match self.shell {
            Shell::Bash => include_str!("bash"),
            Shell::Fish => include_str!("fish"),
            Shell::Zsh => include_str!("zsh"),
        };
        print(script.as_bytes(), exit_code::SUCCESS)
    }
}

/// Arguments of `mvm complete`.
#[derive(Args)]
pub struct CompleteCommand {
    /// Words behind `mvm`, the last of which is to be completed
    #[arg(allow_hyphen_values = true, trailing_var_arg = true)]
    words: Vec<String>,
}

impl CompleteCommand {
    /// Prints a line for each candidate: the word, a tab, and what it means; or `:files` or `:directories`.
    pub fn run(self) -> ExitCode {
        let vms = Registry::of_user().running().map(|(running, _)| running).unwrap_or_default();
        let vms: Vec<_> = vms
            .iter()
            .map(|vm| {
                let (id, kernel) = (vm.record.id.to_string(), vm.record.config.kernel.clone());
                match &vm.record.name {
                    Some(name) => (name.to_string(), id),
                    None => (id, kernel),
                }
            })
            .collect();
        let lines = complete(&self.words, &vms).into_iter().map(|found| match found {
            Candidate::Word(word, meaning) => {
                let meaning: String = meaning.chars().filter(|character| !character.is_control()).collect();
                format!("{word}\t{meaning}\n")
            }
            Candidate::Files => ":files\n".into(),
            Candidate::Directories => ":directories\n".into(),
        });
        print(lines.collect::<String>().as_bytes(), exit_code::SUCCESS)
    }
}

/// What a word can become.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Candidate {
    /// A word, and what it means.
    Word(String, String),
    /// The path of any file.
    Files,
    /// The path of a directory.
    Directories,
}

/// The candidates for the last of `words`, where `vms` run.
fn complete(words: &[String], vms: &[(String, String)]) -> Vec<Candidate> {
    let mut root = Cli::command();
    root.build();
    let Some((current, before)) = words.split_last() else { return Vec::new() };
    let (mut command, mut option) = (&root, None);
    for word in before {
        if word == "=" {
            // bash makes three words of --option=value.
        } else if option.take().is_some() {
            // The value of the option before it.
        } else if word.starts_with('-') {
            option = option_named(command, word);
        } else if let Some(sub) = command.find_subcommand(word) {
            command = sub;
        }
    }
    let (prefix, current) = match current.split_once('=') {
        Some(("", "")) => (String::new(), ""),
        Some((name, value)) if name.starts_with("--") => {
            option = option_named(command, name);
            (format!("{name}="), value)
        }
        _ => (String::new(), current.as_str()),
    };
    let found = match option {
        Some(option) => values(option),
        None if current.starts_with('-') => options(command),
        None if command.has_subcommands() => commands(command),
        None => command
            .get_positionals()
            .next()
            .map(|argument| positional(argument, &root, vms))
            .unwrap_or_default(),
    };
    let fits = |candidate: Candidate| match candidate {
        Candidate::Word(word, meaning) if word.starts_with(current) => {
            Some(Candidate::Word(format!("{prefix}{word}"), meaning))
        }
        Candidate::Word(..) => None,
        paths => Some(paths),
    };
    found.into_iter().filter_map(fits).collect()
}

/// The option of `command` that `word` is, if it takes a value that is still to come.
fn option_named<'a>(command: &'a Command, word: &str) -> Option<&'a Arg> {
    let named = |argument: &&Arg| match word.strip_prefix("--") {
        Some(long) => argument.get_long_and_visible_aliases().is_some_and(|names| names.contains(&long)),
        None => argument.get_short().is_some_and(|short| word.chars().skip(1).eq([short])),
    };
    let takes_value = |argument: &&Arg| matches!(argument.get_action(), ArgAction::Set | ArgAction::Append);
    command.get_arguments().find(named).filter(takes_value)
}

fn word(word: impl Into<String>, meaning: impl ToString) -> Candidate {
    Candidate::Word(word.into(), meaning.to_string())
}

fn options(command: &Command) -> Vec<Candidate> {
    let shown = command.get_arguments().filter(|argument| !argument.is_hide_set());
    let option = |argument: &Arg| {
        Some(word(format!("--{}", argument.get_long()?), argument.get_help().cloned().unwrap_or_default()))
    };
    shown.filter_map(option).collect()
}

fn commands(command: &Command) -> Vec<Candidate> {
    let shown = command.get_subcommands().filter(|command| !command.is_hide_set());
    shown.map(|command| word(command.get_name(), command.get_about().cloned().unwrap_or_default())).collect()
}

fn positional(argument: &Arg, root: &Command, vms: &[(String, String)]) -> Vec<Candidate> {
    match argument.get_id().as_str() {
        "vm" | "vms" => vms.iter().map(|(name, meaning)| word(name, meaning)).collect(),
        "subcommand" => commands(root),
        _ => values(argument),
    }
}

/// The values of `argument`, or usual ones.
fn values(argument: &Arg) -> Vec<Candidate> {
    let fixed =
        |values: &[(&str, &str)]| values.iter().map(|(value, meaning)| word(*value, meaning)).collect();
    match argument.get_id().as_str() {
        "console" => {
            let mut values: Vec<_> = fixed(&[
                ("stdio", "serial port on standard input and output"),
                ("virtio", "virtio console, which follows the terminal's size"),
                ("off", "not shown"),
            ]);
            values.push(Candidate::Files);
            values
        }
        "net" => fixed(&[
            ("user", "through passt, without root"),
            ("tap=", "a tap that exists"),
            ("bridge=", "a new tap on a bridge"),
        ]),
        "signal" => fixed(&[
            ("KILL", "end the VM at once"),
            ("TERM", "press the power button"),
            ("INT", "press the power button"),
            ("HUP", "press the power button"),
            ("QUIT", "press the power button"),
            ("STOP", "stop the process"),
            ("CONT", "continue the process"),
        ]),
        "cpus" => fixed(&[("1", ""), ("2", ""), ("4", ""), ("8", "")]),
        "memory" => fixed(&[("256M", ""), ("512M", ""), ("1G", ""), ("2G", ""), ("4G", "")]),
        "vhost_user" => fixed(&[("fs=", "a file system")]),
        "share" | "all" | "runtime_dir" => vec![Candidate::Directories],
        "config" | "kernel" | "initrd" | "rootfs" | "disk" | "pmem" | "vsock" | "gdb" => {
            vec![Candidate::Files]
        }
        _ => {
            let values = argument.get_possible_values();
            let meaning =
                |value: &clap::builder::PossibleValue| value.get_help().cloned().unwrap_or_default();
            values.iter().map(|value| word(value.get_name(), meaning(value))).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// The candidates for the last word of `line`, without their meanings.
    fn completed(line: &str) -> Vec<String> {
        let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
        let vms = [("web".to_owned(), "id".to_owned()), ("db".to_owned(), "id".to_owned())];
        let text = |candidate| match candidate {
            Candidate::Word(word, _) => word,
            other => format!("{other:?}"),
        };
        complete(&words, &vms).into_iter().map(text).collect()
    }

    #[rstest]
    #[case("st", &["stop", "stats"])]
    #[case("stop ", &["web", "db"])]
    #[case("stop --time 5 w", &["web"])]
    #[case("stop -t 5 web d", &["db"])]
    #[case("kill --signal T", &["TERM"])]
    #[case("kill --signal=T", &["--signal=TERM"])]
    #[case("kill --signal = T", &["TERM"])]
    #[case("kill --signal =", &["KILL", "TERM", "INT", "HUP", "QUIT", "STOP", "CONT"])]
    #[case("--log-level deb", &["debug"])]
    #[case("boot --log-level=w", &["--log-level=warn"])]
    #[case("boot --cons", &["--console"])]
    #[case("boot --console s", &["stdio", "Files"])]
    #[case("boot --console ", &["stdio", "virtio", "off", "Files"])]
    #[case("boot --net t", &["tap="])]
    #[case("boot --kernel ", &["Files"])]
    #[case("boot -m 2", &["256M", "2G"])]
    #[case("boot -v ", &["Directories"])]
    #[case("completions ", &["bash", "fish", "zsh"])]
    #[case("man bo", &["boot"])]
    #[case("boot ", &[])]
    #[case("frobnicate", &[])]
    fn words_are_completed(#[case] line: &str, #[case] expected: &[&str]) {
        assert_eq!(completed(line), expected);
    }

    #[test]
    fn every_option_and_command_is_offered_with_its_meaning() {
        let mut root = Cli::command();
        root.build();
        for command in root.get_subcommands().filter(|command| !command.is_hide_set()) {
            assert!(completed("").contains(&command.get_name().to_owned()));
            let found = complete(&[command.get_name().to_owned(), "--".into()], &[]);
            for option in command.get_opts().filter_map(Arg::get_long) {
                let offered = |candidate: &Candidate| match candidate {
                    Candidate::Word(word, meaning) => *word == format!("--{option}") && !meaning.is_empty(),
                    _ => false,
                };
                assert!(found.iter().any(offered), "{} --{option}", command.get_name());
            }
        }
    }

    #[test]
    fn no_words_have_no_candidates() {
        assert_eq!(complete(&[], &[]), []);
    }
}
