//! `mvm completions` prints a script for a shell, and `mvm complete` answers these scripts.
//!
//! The scripts only ask. The candidates are found here, from the same description of the command line that parses it,
//! and from the containers, VMs and images that there are.

use clap::{Arg, ArgAction, Args, Command, CommandFactory, ValueEnum};
use image::{Image, Store};
use instance::{Archive, Kept, Kind, Registry, Volume, Volumes};

use crate::images::{human, list};

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
        let lines = complete(&self.words, &What { known: &known, images: &images, volumes: &volumes })
            .into_iter()
            .map(|found| match found {
                Candidate::Word(word, meaning) => {
                    let meaning: String =
                        meaning.chars().filter(|character| !character.is_control()).collect();
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

/// A container or VM.
struct Known {
    /// Its name, or its ID where it has none.
    word: String,
    /// Its image, or its kernel.
    meaning: String,
    kind: Kind,
    is_running: bool,
}

/// What there is, for where it is needed.
#[derive(Clone, Copy)]
struct What<'a> {
    known: &'a dyn Fn() -> Vec<Known>,
    /// References, and the IDs of images without any, with the size of each.
    images: &'a dyn Fn() -> Vec<(String, String)>,
    /// Names of volumes, with the driver of each.
    volumes: &'a dyn Fn() -> Vec<(String, String)>,
}

/// This user's images; a store is not made for them.
fn images() -> Vec<(String, String)> {
    let directory = instance::data_directory().map(|data| data.join("images"));
    let store = directory.filter(|directory| directory.is_dir()).and_then(|path| Store::open(&path).ok());
    let images = store.and_then(|store| store.images().ok()).unwrap_or_default();
    let names = |image: &Image| {
        let size = human::size(image.size);
        let names: Vec<_> = image.references.iter().map(ToString::to_string).collect();
        let names = if names.is_empty() { vec![list::short(image)] } else { names };
        names.into_iter().map(|name| (name, size.clone())).collect::<Vec<_>>()
    };
    images.iter().flat_map(names).collect()
}

/// This user's volumes.
fn volumes() -> Vec<(String, String)> {
    let all = Volumes::of_user().ok().and_then(|volumes| volumes.all().ok()).map(|(all, _)| all);
    let name = |volume: Volume| (volume.record.name.to_string(), volume.record.driver.as_str().to_owned());
    all.unwrap_or_default().into_iter().map(name).collect()
}

/// This user's containers and VMs, with those that have ended.
fn known() -> Vec<Known> {
    let kept = Archive::of_user().and_then(|archive| archive.all()).map(|(kept, _)| kept).unwrap_or_default();
    let running = Registry::of_user().running().map(|(running, _)| running).unwrap_or_default();
    // Nothing is kept of a VM in the foreground.
    let others = running.iter().filter(|vm| kept.iter().all(|kept| kept.entry.id != vm.record.id));
    let others = others.map(|vm| Known {
        word: vm.record.name.as_ref().map_or_else(|| vm.record.id.to_string(), ToString::to_string),
        meaning: vm.record.config.kernel.clone(),
        kind: Kind::Vm,
        is_running: true,
    });
    let kept = kept.iter().map(|Kept { entry, is_running, .. }| Known {
        word: entry.name.as_ref().map_or_else(|| entry.id.to_string(), ToString::to_string),
        meaning: entry.image.clone(),
        kind: entry.kind,
        is_running: *is_running,
    });
    kept.chain(others).collect()
}

/// The candidates for the last of `words`.
fn complete(words: &[String], what: &What<'_>) -> Vec<Candidate> {
    let mut root = Cli::command();
    root.build();
    let Some((current, before)) = words.split_last() else { return Vec::new() };
    let (mut command, mut option, mut arguments) = (&root, None, 0);
    for word in before {
        if word == "=" {
            // bash makes three words of --option=value.
        } else if option.take().is_some() {
            // The value of the option before it.
        } else if word.starts_with('-') {
            option = option_named(command, word);
        } else if let Some(sub) = command.find_subcommand(word) {
            command = sub;
        } else {
            arguments += 1;
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
        Some(option) => value(command, option, what),
        None if current.starts_with('-') => options(command),
        None if command.has_subcommands() => commands(command),
        None => command
            .get_positionals()
            .next()
            // The others have no usual values.
            .filter(|argument| {
                arguments == 0
                    || matches!(argument.get_action(), ArgAction::Append)
                    || command.get_name() == "cp" && arguments == 1
            })
            .map(|argument| positional(command, argument, &root, what))
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

fn positional(command: &Command, argument: &Arg, root: &Command, what: &What<'_>) -> Vec<Candidate> {
    let images = || (what.images)().into_iter().map(|(name, size)| word(name, size));
    let fits: fn(&Known) -> bool = match &*command
        .get_display_name()
        .unwrap_or_default()
        .replace("mvm-container-", "mvm-")
    {
        "mvm-exec" | "mvm-attach" | "mvm-top" => |known| known.is_running && known.kind == Kind::Container,
        "mvm-console" | "mvm-balloon" | "mvm-resize" => |known| known.is_running && known.kind == Kind::Vm,
        "mvm-snapshot" if argument.get_id() == "vm" => |known| known.is_running && known.kind == Kind::Vm,
        "mvm-stop" | "mvm-kill" | "mvm-pause" | "mvm-resume" | "mvm-stats" | "mvm-fork" => {
            |known| known.is_running
        }
        "mvm-diff" | "mvm-export" | "mvm-commit" => |known| known.kind == Kind::Container,
        "mvm-cp" => {
            let known = (what.known)().into_iter().filter(|known| known.kind == Kind::Container);
            let paths = known.map(|known| word(format!("{}:", known.word), known.meaning));
            return paths.chain([Candidate::Files]).collect();
        }
        "mvm-start" => |known| !known.is_running && known.kind == Kind::Container,
        "mvm-restart" | "mvm-update" => |known| known.kind == Kind::Container,
        "mvm-logs" | "mvm-rm" | "mvm-rename" | "mvm-port" | "mvm-wait" | "mvm-inspect" => |_| true,
        "mvm-run" | "mvm-create" | "mvm-pull" | "mvm-push" | "mvm-rmi" | "mvm-tag" | "mvm-save"
        | "mvm-history" | "mvm-image-pull" | "mvm-image-push" | "mvm-image-rm" | "mvm-image-tag"
        | "mvm-image-save" | "mvm-image-history" | "mvm-image-inspect" => return images().collect(),
        "mvm-volume-inspect" | "mvm-volume-rm" => {
            return (what.volumes)().into_iter().map(|(name, driver)| word(name, driver)).collect();
        }
        "mvm-man" => return commands(root),
        "mvm-pod-top" | "mvm-pod-stats" | "mvm-pod-pause" | "mvm-pod-unpause" | "mvm-pod-stop"
        | "mvm-pod-kill" => |known| known.is_running && known.kind == Kind::Pod,
        // The name is the user's.
        "mvm-pod-create" => return Vec::new(),
        name if name.starts_with("mvm-pod-") => |known| known.kind == Kind::Pod,
        _ => return values(argument),
    };
    let is_of_pods = command.get_display_name().is_some_and(|name| name.starts_with("mvm-pod-"));
    let known = (what.known)();
    let found = known
        .iter()
        .filter(|known| fits(known) && (known.kind == Kind::Pod) == is_of_pods)
        .map(|known| word(&known.word, &known.meaning));
    match command.get_name() {
        "inspect" => found.chain(images()).collect(),
        _ => found.collect(),
    }
}

/// The values of an option of `command`: what there is, or usual ones.
fn value(command: &Command, option: &Arg, what: &What<'_>) -> Vec<Candidate> {
    let known = |kind: Kind| {
        let known = (what.known)().into_iter().filter(move |known| known.kind == kind);
        known.map(|known| word(known.word, known.meaning)).collect::<Vec<_>>()
    };
    match (command.get_name(), option.get_id().as_str()) {
        ("run" | "create", "pod") => known(Kind::Pod),
        ("run" | "create", "volumes_from") => known(Kind::Container),
        ("logs", "container") => known(Kind::Container),
        ("run" | "create", "volume") => {
            let volumes = (what.volumes)().into_iter();
            let volumes = volumes.map(|(name, driver)| word(format!("{name}:"), driver));
            volumes.chain([Candidate::Files]).collect()
        }
        _ => values(option),
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
            ("KILL", "end it at once"),
            ("TERM", "to a container's command; presses a VM's power button"),
            ("INT", "to a container's command; presses a VM's power button"),
            ("HUP", "to a container's command; presses a VM's power button"),
            ("QUIT", "to a container's command; presses a VM's power button"),
            ("USR1", "to a container's command"),
            ("USR2", "to a container's command"),
            ("WINCH", "to a container's command"),
            ("STOP", "stop the process"),
            ("CONT", "continue the process"),
        ]),
        "streams" => {
            fixed(&[("stdin", "its input"), ("stdout", "its output"), ("stderr", "its standard error")])
        }
        "cpus" => fixed(&[("1", ""), ("2", ""), ("4", ""), ("8", "")]),
        "memory" => fixed(&[("256M", ""), ("512M", ""), ("1G", ""), ("2G", ""), ("4G", "")]),
        "vhost_user" => fixed(&[("fs=", "a file system")]),
        "share" | "all" | "runtime_dir" => vec![Candidate::Directories],
        "config" | "kernel" | "initrd" | "rootfs" | "disk" | "pmem" | "vsock" | "gdb" | "input"
        | "output" | "file" | "cidfile" => {
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

    const NOTHING: What<'static> = What { known: &Vec::new, images: &Vec::new, volumes: &Vec::new };

    /// The candidates for the last word of `line`, without their meanings.
    fn completed(line: &str) -> Vec<String> {
        let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
        let known = || {
            let known = |(word, kind, is_running): (&str, _, _)| Known {
                word: word.into(),
                meaning: String::new(),
                kind,
                is_running,
            };
            let all = [
                ("web", Kind::Container, true),
                ("db", Kind::Vm, true),
                ("old", Kind::Container, false),
                ("both", Kind::Pod, true),
                ("idle", Kind::Pod, false),
            ];
            all.map(known).into()
        };
        let text = |candidate| match candidate {
            Candidate::Word(word, _) => word,
            other => format!("{other:?}"),
        };
        let image = |name: &str| (name.to_owned(), "1MB".to_owned());
        let images = || ["alpine:3.20", "localhost:5000/tools:1", "0123456789ab"].map(image).to_vec();
        let volumes = || vec![("data".to_owned(), "local".to_owned())];
        let what = What { known: &known, images: &images, volumes: &volumes };
        complete(&words, &what).into_iter().map(text).collect()
    }

    #[rstest]
    #[case("st", &["start", "stop", "stats"])]
    #[case("stop ", &["web", "db"])]
    #[case("stop --time 5 w", &["web"])]
    #[case("stop -t 5 web d", &["db"])]
    #[case("exec ", &["web"])]
    #[case("exec -it w", &["web"])]
    #[case("exec web ", &[])]
    #[case("cp ", &["web:", "old:", "Files"])]
    #[case("cp web:/etc o", &["old:", "Files"])]
    #[case("cp a b ", &[])]
    #[case("diff ", &["web", "old"])]
    #[case("commit o", &["old"])]
    #[case("export --output ", &["Files"])]
    #[case("run --volumes-from ", &["web", "old"])]
    #[case("create --volumes-from=o", &["--volumes-from=old"])]
    #[case("run --cidfile ", &["Files"])]
    #[case("run -a std", &["stdin", "stdout", "stderr"])]
    #[case("logs ", &["web", "db", "old"])]
    #[case("logs web ", &[])]
    #[case("rm old ", &["web", "db", "old"])]
    #[case("wait o", &["old"])]
    #[case("inspect o", &["old"])]
    #[case("image inspect o", &[])]
    #[case("image inspect a", &["alpine:3.20"])]
    #[case("inspect ", &["web", "db", "old", "alpine:3.20", "localhost:5000/tools:1", "0123456789ab"])]
    #[case("run -it --name x a", &["alpine:3.20"])]
    #[case("run alpine:3.20 ", &[])]
    #[case("rmi alpine:3.20 l", &["localhost:5000/tools:1"])]
    #[case("image rm 0", &["0123456789ab"])]
    #[case("volume rm ", &["data"])]
    #[case("volume create ", &[])]
    #[case("history ", &["alpine:3.20", "localhost:5000/tools:1", "0123456789ab"])]
    #[case("start ", &["old"])]
    #[case("pod top ", &["both"])]
    #[case("pod stats b", &["both"])]
    #[case("pod logs ", &["both", "idle"])]
    #[case("pod logs --container w", &["web"])]
    #[case("pod rm both ", &["both", "idle"])]
    #[case("pod create ", &[])]
    #[case("pod st", &["start", "stop", "stats"])]
    #[case("run --pod ", &["both", "idle"])]
    #[case("run -v d", &["data:", "Files"])]
    #[case("console ", &["db"])]
    #[case("resize db ", &[])]
    #[case("pause ", &["web", "db"])]
    #[case("fork ", &["web", "db"])]
    #[case("snapshot ", &["db"])]
    #[case("kill --signal T", &["TERM"])]
    #[case("kill --signal=T", &["--signal=TERM"])]
    #[case("kill --signal = T", &["TERM"])]
    #[case("kill --signal =", &["KILL", "TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "WINCH", "STOP", "CONT"])]
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
    #[case("image p", &["pull", "push", "prune"])]
    #[case("image ls --dig", &["--digests"])]
    #[case("import ", &["Files"])]
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
            let found = complete(&[command.get_name().to_owned(), "--".into()], &NOTHING);
            for option in command.get_opts().filter(|option| !option.is_hide_set()).filter_map(Arg::get_long)
            {
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
        assert_eq!(complete(&[], &NOTHING), []);
    }
}
