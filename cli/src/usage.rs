//! What is wrong with a command line, in one line.

use std::error::Error as _;
use std::net::AddrParseError;
use std::num::ParseIntError;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory};

use crate::process::ExitCode;
use crate::{Cli, complain, exit_code, foreign};

/// Prints what clap has to say: help and versions as they are, an error as one line.
pub fn report(error: &clap::Error, arguments: &[String]) -> ExitCode {
    match error.kind() {
        // -hda, which clap takes for -h.
        ErrorKind::DisplayHelp if let Some(line) = qemu_option(arguments) => {
            complain(&line);
            exit_code::USAGE.into()
        }
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            crate::print(error.render().to_string().as_bytes(), exit_code::SUCCESS)
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // Nothing can be done where standard error is closed.
            let _ = error.print();
            exit_code::USAGE.into()
        }
        _ => {
            complain(&message(error, arguments));
            // As docker's commands that make containers.
            let is_run = subcommand(&Cli::command(), arguments).is_some_and(|(name, _)| {
                matches!(name.as_str(), "run" | "create" | "container run" | "container create")
            });
            if is_run { exit_code::CONTAINER } else { exit_code::USAGE }.into()
        }
    }
}

/// The error in one line, with what to write instead.
fn message(error: &clap::Error, arguments: &[String]) -> String {
    if let Some(line) = qemu_option(arguments) {
        return line;
    }
    let root = Cli::command();
    let (name, command) = subcommand(&root, arguments).unzip();
    let name = name.as_deref().unwrap_or_default();
    let what = explain(error, command, name);
    if what.contains([':', ';']) && error.kind() != ErrorKind::MissingSubcommand {
        return what;
    }
    let help = if name.is_empty() { "mvm --help".to_owned() } else { format!("mvm {name} --help") };
    format!("{what}; see `{help}`")
}

/// What to write in place of an option of QEMU's: it has one dash, so that clap takes it for several short flags.
fn qemu_option(arguments: &[String]) -> Option<String> {
    let root = Cli::command();
    let name = subcommand(&root, arguments).map(|(name, _)| name).unwrap_or_default();
    let qemu = |word: &&String| word.starts_with('-') && !word.starts_with("--") && word.len() > 2;
    let mut before_dashes = arguments.iter().skip(1).take_while(|word| *word != "--").filter(qemu);
    before_dashes.find_map(|word| Some(format!("unknown option {word}: {}", foreign::option(&name, word)?)))
}

/// The subcommand that `arguments` name, and its name with that of its group, as in `image ls`.
fn subcommand<'a>(root: &'a Command, arguments: &[String]) -> Option<(String, &'a Command)> {
    let mut words = arguments.iter().skip(1);
    let mut found: Option<(String, &Command)> = None;
    while let Some(word) = words.next() {
        if word == "--log-level" || word == "--runtime-dir" {
            words.next();
        } else if !word.starts_with('-') {
            let (name, command) =
                found.as_ref().map_or(("", root), |(name, command)| (name.as_str(), *command));
            let Some(inner) = command.find_subcommand(word) else { break };
            found = Some((format!("{name} {}", inner.get_name()).trim_start().to_owned(), inner));
        }
    }
    found
}

fn explain(error: &clap::Error, subcommand: Option<&Command>, command: &str) -> String {
    let texts = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => vec![text.clone()],
        Some(ContextValue::Strings(texts)) => texts.clone(),
        Some(ContextValue::StyledStr(text)) => vec![text.to_string()],
        _ => Vec::new(),
    };
    let text = |kind| texts(kind).join(", ");
    let argument = text(ContextKind::InvalidArg);
    let flag = argument.split_once([' ', '=']).map_or(argument.as_str(), |(flag, _)| flag);
    let value = text(ContextKind::InvalidValue);
    match error.kind() {
        ErrorKind::UnknownArgument => unknown_argument(command, &argument, &text(ContextKind::SuggestedArg)),
        ErrorKind::InvalidSubcommand => {
            let word = text(ContextKind::InvalidSubcommand);
            // The best one comes last.
            let similar =
                texts(ContextKind::SuggestedSubcommand).pop().filter(|similar| is_near(&word, similar));
            let is_shown = |similar: &String| {
                let commands = Cli::command();
                !commands.find_subcommand(similar).is_some_and(Command::is_hide_set)
            };
            let similar = similar.filter(is_shown);
            let similar = similar.unwrap_or_default();
            match foreign::command(command, &word) {
                Some(advice) => format!("unknown command {word:?}: {advice}"),
                None if similar.is_empty() => format!("unknown command {word:?}"),
                None => format!("unknown command {word:?}: did you mean {similar}?"),
            }
        }
        ErrorKind::InvalidValue if value.is_empty() => match flag.trim_matches(['[', ']', '<', '>', '.']) {
            name if name == flag => format!("{flag} needs a value: {argument}"),
            name => format!("{name} is empty: write a value"),
        },
        ErrorKind::InvalidValue => {
            format!("{flag}: invalid value {value:?}: use {}", text(ContextKind::ValidValue))
        }
        ErrorKind::ValueValidation => {
            let cause = error
                .source()
                .map_or_else(|| format!("invalid value {value:?}"), |cause| of_value(cause, &value));
            format!("{}: {cause}", flag.trim_matches(['[', ']', '<', '>', '.']))
        }
        ErrorKind::TooManyValues | ErrorKind::WrongNumberOfValues => {
            format!("{flag} takes no value: leave {value:?} out")
        }
        ErrorKind::ArgumentConflict => match text(ContextKind::PriorArg) {
            prior if prior == argument || prior.is_empty() => format!("{flag} is given twice"),
            prior => {
                let prior = prior.split_once(' ').map_or(prior.as_str(), |(flag, _)| flag);
                format!("{flag} and {prior} cannot be used together")
            }
        },
        // An option that another one requires; positional arguments are named all together.
        ErrorKind::MissingRequiredArgument if argument.starts_with("--") => {
            format!("an option that is given needs {flag}")
        }
        ErrorKind::MissingRequiredArgument => {
            let required = subcommand.into_iter().flat_map(Command::get_positionals);
            let required = required.filter(|argument| argument.is_required_set()).map(ToString::to_string);
            let required = required.collect::<Vec<_>>().join(" ").replace(['<', '>'], "");
            format!("missing argument: mvm {command} {required}")
        }
        ErrorKind::MissingSubcommand => {
            format!("missing command: {} COMMAND", format!("mvm {command}").trim_end())
        }
        ErrorKind::InvalidUtf8 => "an argument is not UTF-8 text".into(),
        _ => {
            let rendered = error.render().to_string();
            let line = rendered.lines().next().unwrap_or_default();
            line.strip_prefix("error: ").unwrap_or(line).to_owned()
        }
    }
}

/// Whether `similar` is a likely mistake for `word`: a letter in three may be another one. clap guesses further.
fn is_near(word: &str, similar: &str) -> bool {
    let word = word.split_once('=').map_or(word, |(word, _)| word);
    3 * strsim::osa_distance(word, similar) <= word.trim_start_matches('-').chars().count()
}

/// Why a value is invalid. Texts of the standard library and of clap do not say what to use.
fn of_value(cause: &(dyn std::error::Error + 'static), value: &str) -> String {
    let text = cause.to_string();
    if cause.is::<ParseIntError>() {
        format!("invalid number {value:?}: use a whole one")
    } else if cause.is::<AddrParseError>() {
        format!("invalid address {value:?}: use one as in 1.1.1.1")
    } else if let Some((low, high)) =
        text.split_once(" is not in ").and_then(|(_, range)| range.split_once("..="))
    {
        format!("invalid number {value:?}: use {low} to {high}")
    } else {
        text
    }
}

fn unknown_argument(command: &str, argument: &str, similar: &str) -> String {
    if let Some(advice) = foreign::option(command, argument) {
        return format!("unknown option {argument}: {advice}");
    }
    if argument.strip_prefix('-').is_some_and(|number| number.parse::<f64>().is_ok()) {
        return format!(
            "unknown option {argument}: where it is the value of an option, write it behind =, as in \
             --OPTION={argument}"
        );
    }
    if !argument.starts_with('-') {
        return match command {
            "boot" => format!("unexpected argument {argument:?}: options start with --, as in --kernel FILE"),
            _ => format!("unexpected argument {argument:?}"),
        };
    }
    let similar = similar.split_once(' ').map_or(similar, |(flag, _)| flag);
    if !is_near(argument, similar) {
        format!("unknown option {argument}")
    } else {
        format!("unknown option {argument}: did you mean {similar}?")
    }
}
