//! What is wrong with a command line, in one line.

use std::error::Error as _;

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
            // As docker's command that runs containers.
            let is_run =
                subcommand(&Cli::command(), arguments).is_some_and(|command| command.get_name() == "run");
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
    let command = subcommand(&root, arguments);
    let name = command.map_or("", Command::get_name);
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
    let name = subcommand(&root, arguments).map_or("", Command::get_name);
    let qemu = |word: &&String| word.starts_with('-') && !word.starts_with("--") && word.len() > 2;
    let mut before_dashes = arguments.iter().skip(1).take_while(|word| *word != "--").filter(qemu);
    before_dashes.find_map(|word| Some(format!("unknown option {word}: {}", foreign::option(name, word)?)))
}

/// The subcommand that `arguments` name.
fn subcommand<'a>(root: &'a Command, arguments: &[String]) -> Option<&'a Command> {
    let mut words = arguments.iter().skip(1);
    while let Some(word) = words.next() {
        if word == "--log-level" || word == "--runtime-dir" {
            words.next();
        } else if !word.starts_with('-') {
            return root.find_subcommand(word);
        }
    }
    None
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
            let similar = text(ContextKind::SuggestedSubcommand);
            match foreign::command(&word) {
                Some(advice) => format!("unknown command {word:?}: {advice}"),
                None if similar.is_empty() => format!("unknown command {word:?}"),
                None => format!("unknown command {word:?}: did you mean {similar}?"),
            }
        }
        ErrorKind::InvalidValue if value.is_empty() => format!("{flag} needs a value: {argument}"),
        ErrorKind::InvalidValue => {
            format!("{flag}: invalid value {value:?}: use {}", text(ContextKind::ValidValue))
        }
        ErrorKind::ValueValidation => {
            let cause =
                error.source().map_or_else(|| format!("invalid value {value:?}"), ToString::to_string);
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
        ErrorKind::MissingRequiredArgument => {
            let required = subcommand.into_iter().flat_map(Command::get_positionals);
            let required = required.filter(|argument| argument.is_required_set()).map(ToString::to_string);
            let required = required.collect::<Vec<_>>().join(" ").replace(['<', '>'], "");
            format!("missing argument: mvm {command} {required}")
        }
        ErrorKind::MissingSubcommand => "missing command: mvm COMMAND".into(),
        ErrorKind::InvalidUtf8 => "an argument is not UTF-8 text".into(),
        _ => {
            let rendered = error.render().to_string();
            let line = rendered.lines().next().unwrap_or_default();
            line.strip_prefix("error: ").unwrap_or(line).to_owned()
        }
    }
}

fn unknown_argument(command: &str, argument: &str, similar: &str) -> String {
    if let Some(advice) = foreign::option(command, argument) {
        return format!("unknown option {argument}: {advice}");
    }
    if !argument.starts_with('-') {
        return match command {
            "boot" => format!("unexpected argument {argument:?}: options start with --, as in --kernel FILE"),
            _ => format!("unexpected argument {argument:?}"),
        };
    }
    let similar = similar.split_once(' ').map_or(similar, |(flag, _)| flag);
    if similar.is_empty() {
        format!("unknown option {argument}")
    } else {
        format!("unknown option {argument}: did you mean {similar}?")
    }
}
