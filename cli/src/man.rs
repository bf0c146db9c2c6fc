//! `mvm man`: manual pages (man(7)), made from the same description of the command line that parses it.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, Args, Command, CommandFactory};

use crate::process::ExitCode;
use crate::{Cli, complain, exit_code, print};

const EXAMPLES: &str = "\
Examples:
  mvm man boot | man -l -
  mvm man --all ~/.local/share/man/man1";

/// Arguments of `mvm man`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct ManCommand {
    /// Command that the page is about [default: mvm itself]
    #[arg(value_name = "COMMAND")]
    subcommand: Vec<String>,

    /// Write all pages to the directory DIR
    #[arg(long, value_name = "DIR", conflicts_with = "subcommand")]
    all: Option<PathBuf>,
}

impl ManCommand {
    /// Prints the page, or writes all of them.
    pub fn run(self) -> ExitCode {
        let mut root = Cli::command();
        // Subcommands get the global flags.
        root.build();
        if let Some(directory) = self.all {
            return write_all(&root, &directory);
        }
        let mut command = &root;
        for name in &self.subcommand {
            let Some(found) = command.find_subcommand(name) else {
                let words = self.subcommand.join(" ");
                complain(&format!("unknown command {words:?}; see `mvm --help`"));
                return exit_code::USAGE.into();
            };
            command = found;
        }
        print(page(&root, command).as_bytes(), exit_code::SUCCESS)
    }
}

/// The commands of `root` that have a page of their own.
fn documented(root: &Command) -> impl Iterator<Item = &Command> {
    root.get_subcommands().filter(|command| !command.is_hide_set())
}

fn write_all(root: &Command, directory: &Path) -> ExitCode {
    let inner = documented(root).flat_map(documented);
    for command in std::iter::once(root).chain(documented(root)).chain(inner) {
        let path = directory.join(format!("{}.1", name(command)));
        if let Err(error) = std::fs::write(&path, page(root, command)) {
            complain(&format!("cannot write {}: {error}", path.display()));
            return exit_code::HOST.into();
        }
    }
    exit_code::SUCCESS.into()
}

/// The name of a command's page, as `mvm-image-ls`.
fn name(command: &Command) -> String {
    command.get_display_name().unwrap_or("mvm").to_owned()
}

/// `text` in roff: nothing in it is a request or an escape, and its dashes can be copied.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    let lines = text
        .lines()
        .map(|line| if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line.into() });
    lines.collect::<Vec<_>>().join("\n")
}

fn page(root: &Command, command: &Command) -> String {
    let is_root = command.get_name() == root.get_name();
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let mut page = String::new();
    let mut put = |text: &str| {
        page.push_str(text);
        page.push('\n');
    };
    put(&format!(
        ".TH {} 1 \"\" \"mvm {}\" \"User Commands\"",
        name(command).to_uppercase(),
        env!("CARGO_PKG_VERSION")
    ));
    put(&format!(".SH NAME\n{} \\- {}", roff(&name(command)), roff(&lower_first(&about))));
    put(&format!(".SH SYNOPSIS\n{}", synopsis(command)));
    let description = command.get_long_about().map_or(about, ToString::to_string);
    put(&format!(".SH DESCRIPTION\n{}.", roff(description.trim_end_matches('.'))));
    if is_root {
        put(
            "mvm has no daemon: each container and each VM is kept by a process of its own, and the other commands find it by its name or ID.",
        );
    }
    if command.has_subcommands() {
        put(".SH COMMANDS");
        for command in documented(command) {
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            put(&format!(".TP\n.BR {} (1)\n{}", roff(&name(command)), roff(&about)));
        }
    }
    put(&options(command));
    let extra = command.get_after_long_help().or(command.get_after_help()).map(ToString::to_string);
    let extra = sections(&extra.unwrap_or_default());
    put(&extra);
    if !extra.contains(".SH EXIT STATUS") {
        put(EXIT_STATUS);
    }
    put(&environment(command, is_root));
    if is_root || matches!(command.get_name(), "boot" | "run" | "create") {
        put(FILES);
    }
    put(".SH SEE ALSO");
    let others = documented(root).filter(|_| is_root).map(name);
    let others: Vec<_> = (!is_root).then(|| "mvm".to_owned()).into_iter().chain(others).collect();
    let last = others.len().saturating_sub(1);
    for (index, other) in others.iter().enumerate() {
        put(&format!(".BR {} (1){}", roff(other), if index == last { "" } else { "," }));
    }
    page
}

const EXIT_STATUS: &str = "\
.SH EXIT STATUS
.TP
0
Success.
.TP
1
There is no such container, VM or image, or the command failed for it.
.TP
2
Wrong usage.
.TP
3
The host cannot do it.";

const FILES: &str = "\
.SH FILES
.TP
.I $XDG_RUNTIME_DIR/mvm/ID/
The directory of a container or VM that runs; /run/mvm/ID/ for root, /tmp/mvm\\-UID/ID/ where XDG_RUNTIME_DIR is not set. In it are
.I control.sock
(HTTP) and, of a VM,
.I console.sock
and
.IR console.log ,
the console's latest output.
.TP
.I $XDG_DATA_HOME/mvm/instances/ID/
What is kept of a container, or of a VM in the background, until
.BR mvm\\-rm (1):
its options, its output and how it ended; ~/.local/share where XDG_DATA_HOME is not set, /var/lib/mvm/instances/ID/ for root.
.TP
.I $XDG_DATA_HOME/mvm/images/
The store of images; /var/lib/mvm/images/ for root.
.TP
.IR /etc/mvm/config.toml ,\\ $XDG_CONFIG_HOME/mvm/config.toml
What containers have where no option says it.";

fn environment(command: &Command, is_root: bool) -> String {
    let mut text = ".SH ENVIRONMENT\n.TP\n.B MVM_LOG\nThe level of the log, as \\-\\-log\\-level.".to_owned();
    if is_root || matches!(command.get_name(), "boot" | "run" | "create") {
        text += "\n.TP\n.B MVM_DATA_DIR\nWhere images are, and what is kept of containers and VMs.";
        text += "\n.TP\n.B MVM_VIRTIOFSD\nThe program that serves shared folders.";
        text += "\n.TP\n.B MVM_PASST\nThe program behind user networks.";
    }
    text + "\n.TP\n.B XDG_RUNTIME_DIR\nWhere the directories of what runs are."
}

fn lower_first(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map(|first| first.to_lowercase().chain(characters).collect()).unwrap_or_default()
}

/// The options of `command` that are its own, or all.
fn shown_options(command: &Command, with_global: bool) -> impl Iterator<Item = &Arg> {
    let own =
        move |argument: &&Arg| with_global || (!argument.is_global_set() && argument.get_id() != "help");
    command
        .get_arguments()
        .filter(|argument| !argument.is_positional() && !argument.is_hide_set())
        .filter(own)
}

fn synopsis(command: &Command) -> String {
    let mut line = format!(".B {}\n", roff(&name(command).replace('-', " ")).replace("\\-", " "));
    if command.has_subcommands() {
        return line + "[\\fIOPTION\\fR]... \\fICOMMAND\\fR [\\fIARGUMENT\\fR]...";
    }
    if shown_options(command, false).count() > 4 {
        line += "[\\fIOPTION\\fR]...\n";
    } else {
        for option in shown_options(command, false) {
            let _ = writeln!(line, "[{}]", spelled(option, false));
        }
    }
    for argument in command.get_positionals() {
        let many = if matches!(argument.get_action(), ArgAction::Append) { "..." } else { "" };
        let value = value_of(argument).unwrap_or_default();
        let _ = match argument.is_required_set() {
            true => writeln!(line, "{value}{many}"),
            false => writeln!(line, "[{value}]{many}"),
        };
    }
    line.trim_end().to_owned()
}

/// The name of an argument's value.
fn value_of(argument: &Arg) -> Option<String> {
    let takes_value = matches!(argument.get_action(), ArgAction::Set | ArgAction::Append);
    let name = argument.get_value_names().and_then(|names| names.first()).map(ToString::to_string);
    takes_value.then(|| {
        format!("\\fI{}\\fR", roff(&name.unwrap_or_else(|| argument.get_id().as_str().to_uppercase())))
    })
}

/// An option as it is written; `both` has the short form and the long one.
fn spelled(option: &Arg, both: bool) -> String {
    let short = option.get_short().map(|short| format!("\\fB\\-{short}\\fR"));
    let long = option.get_long().map(|long| format!("\\fB{}\\fR", roff(&format!("--{long}"))));
    let names: Vec<_> = match both {
        true => short.into_iter().chain(long).collect(),
        false => long.or(short).into_iter().collect(),
    };
    let value = value_of(option).map(|value| format!(" {value}")).unwrap_or_default();
    names.join(", ") + &value
}

fn options(command: &Command) -> String {
    let mut text = ".SH OPTIONS".to_owned();
    for argument in command.get_positionals() {
        text += &format!("\n.TP\n{}\n{}", value_of(argument).unwrap_or_default(), help(argument));
    }
    let mut heading = None;
    let mut all: Vec<_> = shown_options(command, true).collect();
    // Those without a heading come first; the sort is stable.
    let headings: Vec<_> = all.iter().map(|option| option.get_help_heading()).collect();
    all.sort_by_key(|option| {
        headings.iter().position(|heading| *heading == option.get_help_heading() && heading.is_some())
    });
    for option in all {
        if option.get_help_heading() != heading {
            heading = option.get_help_heading();
            text += &format!("\n.SS {}", roff(heading.unwrap_or_default()));
        }
        text += &format!("\n.TP\n{}\n{}", spelled(option, true), help(option));
    }
    text
}

/// The text of an argument, each paragraph behind the first set off.
fn help(argument: &Arg) -> String {
    if argument.get_id() == "help" {
        return "Print help: all of it with \\-\\-help, a summary with \\-h.".into();
    }
    let text = argument.get_long_help().or(argument.get_help()).map(ToString::to_string).unwrap_or_default();
    let paragraphs = text.split("\n\n").map(|paragraph| {
        let end = if paragraph.ends_with(['.', ']', ')']) { "" } else { "." };
        roff(paragraph) + end
    });
    paragraphs.collect::<Vec<_>>().join("\n.sp\n")
}

/// The text behind the options: each line at the margin that ends with a colon begins a section.
fn sections(text: &str) -> String {
    let mut page = String::new();
    let mut verbatim = false;
    for line in text.lines() {
        match line.strip_suffix(':') {
            Some(title) if !line.starts_with(' ') => {
                let end = if verbatim { ".fi\n" } else { "" };
                let title = if title == "Exit codes" { "Exit status" } else { title };
                let _ = writeln!(page, "{end}.SH {}\n.nf", roff(&title.to_uppercase()));
                verbatim = true;
            }
            _ if verbatim => {
                let _ = writeln!(page, "{}", roff(line.strip_prefix("  ").unwrap_or(line)));
            }
            _ => {}
        }
    }
    page + if verbatim { ".fi" } else { "" }
}
