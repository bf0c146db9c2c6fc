//! Where the words of a container's command begin, which are not mvm's options even where they look like those.

use std::ffi::OsString;

use clap::{Arg, Args, Command};

use crate::{GlobalArguments, exec, run};

/// Writes options that are on or off as they are described: `--rm=true`, as programs in Go read it, is `--rm`, and
/// `--rm=false` is nothing. `described` is the command whose name is the first word.
pub fn plain_switches(words: &mut Vec<OsString>, described: &Command) {
    let end = words.iter().position(|word| word == "--").unwrap_or(words.len());
    let rest = words.split_off(end);
    words.retain_mut(|word| {
        let switch = word.to_str().and_then(|word| word.strip_prefix("--")?.split_once('='));
        let Some((name, value)) = switch else { return true };
        let is_switch = described
            .get_arguments()
            .any(|arg| arg.get_long() == Some(name) && matches!(arg.get_action(), clap::ArgAction::SetTrue));
        match value {
            "1" | "t" | "T" | "true" | "TRUE" | "True" if is_switch => *word = format!("--{name}").into(),
            "0" | "f" | "F" | "false" | "FALSE" | "False" if is_switch => return false,
            _ => {}
        }
        true
    });
    words.extend(rest);
}

/// Whether some word may be such an option.
fn has_switch(words: &[OsString]) -> bool {
    words.iter().any(|word| word.to_str().is_some_and(|word| word.starts_with("--") && word.contains('=')))
}

/// The same for the words of any command.
fn plain_switches_of_all(words: &mut Vec<OsString>) {
    let mut described = <crate::Cli as clap::CommandFactory>::command();
    described.build();
    let mut command = &described;
    for word in words.iter().skip(1).filter_map(|word| word.to_str()) {
        match command.find_subcommand(word) {
            Some(found) => command = found,
            None if word.starts_with('-') => {}
            None => break,
        }
    }
    plain_switches(words, command);
}

/// Puts `--` behind the image of `mvm run` and `mvm create` and the container of `mvm exec`, for a parser that would
/// take `-c` in `mvm run --entrypoint sh IMAGE -c …` for an option of mvm's. The first word is mvm's own name.
pub fn of_all_commands(mut words: Vec<OsString>) -> Vec<OsString> {
    let mut global = GlobalArguments::augment_args(Command::new("mvm"));
    let own = words
        .get(1..)
        .and_then(|words| first_operand(words, &mut global))
        .map(|index| index.saturating_add(1));
    // The same in docker's group.
    let own = own.map(|own| {
        if words.get(own).is_some_and(|word| word == "container") { own.saturating_add(1) } else { own }
    });
    let described = own.and_then(|own| match words.get(own)?.to_str()? {
        "run" => Some((own, run::RunCommand::augment_args(Command::new("run")))),
        "create" => Some((own, run::CreateCommand::augment_args(Command::new("create")))),
        "exec" => Some((own, exec::ExecCommand::augment_args(Command::new("exec")))),
        _ => None,
    });
    if let Some((own, described)) = described {
        let mut rest = words.split_off(own);
        end_options(&mut rest, &mut GlobalArguments::augment_args(described));
        words.append(&mut rest);
    }
    if has_switch(&words) {
        plain_switches_of_all(&mut words);
    }
    words
}

/// Puts `--` behind the first operand of the command that is described, whose name is the first word.
pub fn end_options(words: &mut Vec<OsString>, described: &mut Command) {
    let operand = words.get(1..).and_then(|words| first_operand(words, described));
    if let Some(after) = operand.map(|index| index.saturating_add(2)).filter(|after| *after < words.len()) {
        words.insert(after, "--".into());
    }
}

/// The place of the first word that is neither an option nor the value of one; none where the words end before, or
/// the options end by `--`.
fn first_operand(words: &[OsString], described: &mut Command) -> Option<usize> {
    described.build();
    let takes_word = |is_meant: &dyn Fn(&Arg) -> bool| {
        let needs_value = |arg: &Arg| arg.get_num_args().is_some_and(|range| range.min_values() > 0);
        described.get_arguments().any(|arg| !arg.is_positional() && is_meant(arg) && needs_value(arg))
    };
    let long = |name: &str| {
        takes_word(&|arg| {
            arg.get_long() == Some(name) || arg.get_all_aliases().is_some_and(|all| all.contains(&name))
        })
    };
    let short = |letter: char| {
        takes_word(&|arg| {
            arg.get_short() == Some(letter)
                || arg.get_all_short_aliases().is_some_and(|all| all.contains(&letter))
        })
    };
    let mut index = 0_usize;
    loop {
        let word = words.get(index)?.to_string_lossy();
        let has_value_behind = if word == "--" {
            return None;
        } else if let Some(name) = word.strip_prefix("--") {
            long(name)
        } else if let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) {
            // The value of the first letter that takes one is the rest of the word, if there is a rest.
            letters
                .char_indices()
                .find(|(_, letter)| short(*letter))
                .is_some_and(|(place, letter)| place.saturating_add(letter.len_utf8()) == letters.len())
        } else {
            return Some(index);
        };
        index = index.saturating_add(if has_value_behind { 2 } else { 1 });
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("run IMAGE -c x", "run IMAGE -- -c x")]
    #[case("run IMAGE", "run IMAGE")]
    #[case("run --rm IMAGE ls -l", "run --rm IMAGE -- ls -l")]
    #[case("run --entrypoint sh IMAGE -c x", "run --entrypoint sh IMAGE -- -c x")]
    #[case("run --entrypoint=sh -e A=1 -eB=2 IMAGE -e", "run --entrypoint=sh -e A=1 -eB=2 IMAGE -- -e")]
    #[case("run -ite A=1 IMAGE -it", "run -ite A=1 IMAGE -- -it")]
    #[case("run -it IMAGE -- -c", "run -it IMAGE -- -- -c")]
    #[case("run -- IMAGE -c", "run -- IMAGE -c")]
    #[case("run --log-level debug IMAGE -c", "run --log-level debug IMAGE -- -c")]
    #[case("--log-level debug run IMAGE -c", "--log-level debug run IMAGE -- -c")]
    #[case("run --network none -P IMAGE --help", "run --network none -P IMAGE -- --help")]
    #[case("run --unknown IMAGE -c", "run --unknown IMAGE -- -c")]
    #[case("run -e", "run -e")]
    #[case("exec -u 1 -w /x web ls -l", "exec -u 1 -w /x web -- ls -l")]
    #[case("container exec web ls -l", "container exec web -- ls -l")]
    #[case("container run -it IMAGE -c", "container run -it IMAGE -- -c")]
    #[case("container", "container")]
    #[case("exec web", "exec web")]
    #[case("ps -a x -q", "ps -a x -q")]
    #[case("ps --all=true --quiet=0 --format=x", "ps --all --format=x")]
    #[case("image ls --quiet=T --no-trunc=no", "image ls --quiet --no-trunc=no")]
    #[case("run --rm=1 --init=false IMAGE --rm=true", "run --rm IMAGE -- --rm=true")]
    #[case("run --env=x=true --tty=False IMAGE", "run --env=x=true IMAGE")]
    #[case("", "")]
    fn options_end_behind_the_first_operand(#[case] given: &str, #[case] expected: &str) {
        let words = |text: &str| -> Vec<OsString> {
            std::iter::once("mvm").chain(text.split_whitespace()).map(Into::into).collect()
        };
        assert_eq!(of_all_commands(words(given)), words(expected));
    }
}
