//! `mvm fork`: copies of what runs, which run beside it.

mod container;
mod vm;

use ::container::PortMapping;
use clap::Args;
use instance::{Kind, Registry, Running, VmName};

use crate::background::{self, Report, Reporter};
use crate::process::ExitCode;
use crate::targets::{self, Failure};
use crate::{complain, events, exit_code, print};

const EXAMPLES: &str = "\
Examples:
  mvm fork web --name web-a
  mvm fork web --name web-b --publish 8081:80
  mvm fork db --name test --count 10";

/// Arguments of `mvm fork`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct ForkCommand {
    /// The container or VM: its ID, the beginning of that, or its name
    #[arg(value_name = "NAME")]
    vm: String,

    /// Name of the copy; of several copies, what their names begin with: NAME-1, NAME-2 and so on
    #[arg(long, value_name = "NAME")]
    name: Option<VmName>,

    /// How many copies are made, all from the same moment
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = count)]
    count: u16,

    /// Publish a port of the copy, as `mvm run` does (the original's ports are not published for it)
    #[arg(long, short, value_name = "PORT")]
    publish: Vec<PortMapping>,

    /// Remove what is kept of a copy when it ends
    #[arg(long)]
    rm: bool,
}

/// The most copies that are made at once.
const MOST: u16 = 1000;

fn count(text: &str) -> Result<u16, String> {
    let count = text.parse().ok().filter(|count| (1..=MOST).contains(count));
    count.ok_or_else(|| format!("invalid number {text:?}: use a whole number from 1 to {MOST}"))
}

/// Why the command fails.
struct Refusal {
    code: u8,
    message: String,
}

impl Refusal {
    fn usage(message: impl Into<String>) -> Self {
        Self { code: exit_code::USAGE, message: message.into() }
    }

    fn failed(message: impl Into<String>) -> Self {
        Self { code: exit_code::FAILURE, message: message.into() }
    }
}

/// What copies are made of.
trait Original {
    /// Runs a copy, called `name`, in this process in the background, and returns its exit code. It is the only one if
    /// it
    /// `is_only` one.
    fn run(self, name: Option<VmName>, is_only: bool, reporter: Reporter) -> u8;
}

/// Runs copies of a running container or VM beside it, in the background, and prints their IDs.
pub fn fork(command: ForkCommand, has_directory: bool) -> ExitCode {
    match try_fork(&command, has_directory) {
        Ok(code) => code,
        Err(Refusal { code, message }) => {
            complain(&message);
            code.into()
        }
    }
}

fn try_fork(command: &ForkCommand, has_directory: bool) -> Result<ExitCode, Refusal> {
    if !has_directory {
        return Err(Refusal::usage(
            "copies run in the background and need a directory: leave --runtime-dir none out",
        ));
    }
    let names = names(command.name.as_ref(), command.count).map_err(Refusal::usage)?;
    if !command.publish.is_empty() && command.count > 1 {
        return Err(Refusal::usage(
            "a port can be published for one copy only: leave --publish or --count out",
        ));
    }
    // Before anything is saved.
    for name in names.iter().flatten() {
        if let Ok(kept) = targets::kept(name.as_str())
            && kept.entry.name.as_ref() == Some(name)
        {
            let id = kept.entry.id;
            return Err(Refusal::usage(format!("the name {name} is in use by {id}: use another one")));
        }
    }
    let failure = |failure: Failure| Refusal::failed(targets::message(&command.vm, &failure));
    let vm = targets::find(&Registry::of_user(), &command.vm).map_err(failure)?;
    let of_vm =
        |refusal: Refusal| Refusal { message: format!("{}: {}", command.vm, refusal.message), ..refusal };
    // A VM in the foreground has no record.
    match targets::kept(vm.record.id.as_str()) {
        Ok(kept) if kept.entry.kind != Kind::Vm => {
            let original = container::Original::of(kept, &vm, command).map_err(of_vm)?;
            copy(original, &vm, names)
        }
        _ => copy(vm::Original::of(&vm, command).map_err(of_vm)?, &vm, names),
    }
}

/// Starts copies called `names`, and prints their IDs.
fn copy(original: impl Original, vm: &Running, names: Vec<Option<VmName>>) -> Result<ExitCode, Refusal> {
    events::note_of(vm.record.id.as_str(), "fork", &[("count", &names.len().to_string())]);
    let (mut original, is_only, count) = (Some(original), names.len() == 1, names.len());
    let (mut ids, mut refusal) = (String::new(), None);
    for (running, name) in names.into_iter().enumerate() {
        let shown = name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
        let of_copy = |message: String| match is_only {
            true => message,
            false => format!("copy {} of {count}{shown} failed, and {running} run: {message}", running + 1),
        };
        // In the new process it is the copy's, and goes with it; this one keeps it for the next.
        let started = background::start(|reporter| match original.take() {
            Some(original) => original.run(name, is_only, reporter),
            None => exit_code::HOST,
        });
        match started {
            Ok(Report::Started { id }) => ids += &format!("{id}\n"),
            Ok(Report::Failed { code, message }) => {
                refusal = Some(Refusal { code, message: of_copy(message) });
            }
            Err(error) => {
                let message = of_copy(format!("cannot run a copy in the background: {error}"));
                refusal = Some(Refusal { code: exit_code::HOST, message });
            }
        }
        if refusal.is_some() {
            break;
        }
    }
    // Those that run already stay.
    let code = print(ids.as_bytes(), exit_code::SUCCESS);
    refusal.map_or(Ok(code), Err)
}

/// The names of so many copies.
fn names(name: Option<&VmName>, count: u16) -> Result<Vec<Option<VmName>>, String> {
    let Some(name) = name else { return Ok(vec![None; usize::from(count)]) };
    if count == 1 {
        return Ok(vec![Some(name.clone())]);
    }
    let named = |number| format!("{name}-{number}").parse().map(Some);
    (1..=count)
        .map(named)
        .collect::<Result<_, _>>()
        .map_err(|error: instance::IdentityError| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_copies_have_numbers() {
        let words = |name: Option<&str>, count| {
            let names = names(name.map(|name| name.parse().unwrap()).as_ref(), count)?;
            Ok(names.iter().map(|name| name.as_ref().map_or("-".into(), ToString::to_string)).collect())
        };
        let found: Result<Vec<String>, String> = words(None, 2);
        assert_eq!(found.unwrap(), ["-", "-"]);
        assert_eq!(words(Some("web"), 1).unwrap(), ["web"]);
        assert_eq!(words(Some("web"), 3).unwrap(), ["web-1", "web-2", "web-3"]);
        assert!(words(Some(&"n".repeat(VmName::MAX)), 2).unwrap_err().contains("invalid name"));
    }
}
