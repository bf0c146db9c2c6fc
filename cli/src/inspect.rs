//! `mvm inspect`.

use clap::Args;
use instance::{InstanceError, Kind, Registry};
use serde_json::Value;

use crate::format::Format;
use crate::images;
use crate::process::ExitCode;
use crate::ps::{Item, items};
use crate::{chain, complain, exit_code, print, targets};

const EXAMPLES: &str = "\
Examples:
  mvm inspect web
  mvm inspect --format '{{.State.ExitCode}}' web";

/// Arguments of `mvm inspect`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct InspectCommand {
    /// IDs, beginnings of IDs, or names
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,

    /// Look for one kind only: container, vm or image
    #[arg(long = "type", value_name = "KIND", value_parser = ["container", "vm", "image"], hide_possible_values = true)]
    kind: Option<String>,

    /// Print in a form: json, or a Go template
    #[arg(long, short, value_name = "FORM")]
    format: Option<Format>,

    /// Show how much disk space a container has written, and with its image: SizeRw and SizeRootFs
    #[arg(long, short)]
    size: bool,
}

/// Prints what is known of all of `words`, which `find` finds: those that exist also where others do not, for which a
/// line says why.
pub fn print_all<W>(
    format: Option<&Format>,
    words: &[W],
    mut find: impl FnMut(&W) -> Result<Value, String>,
) -> ExitCode {
    let (mut code, mut values) = (exit_code::SUCCESS, Vec::new());
    for word in words {
        match find(word) {
            Ok(value) => values.push(value),
            Err(line) => {
                complain(&line);
                code = exit_code::FAILURE;
            }
        }
    }
    match Format::inspect(format, &values) {
        Ok(text) => print(text.as_bytes(), code),
        Err(error) => {
            complain(&chain(&error));
            exit_code::FAILURE.into()
        }
    }
}

impl InspectCommand {
    /// Prints what is known of VMs and containers.
    pub fn run(self) -> ExitCode {
        let items = match items(true) {
            Ok((items, _)) => items,
            Err(error) => {
                complain(&chain(&error));
                return exit_code::HOST.into();
            }
        };
        print_all(self.format.as_ref(), &self.names, |word| self.find(&items, word))
    }
}

impl InspectCommand {
    /// What is known of `item`.
    fn shown(&self, item: &Item) -> Value {
        let mut shown = item.inspect();
        if let Some(object) = shown.as_object_mut().filter(|_| self.size && item.kind() == Kind::Container) {
            let own = item.disk_usage();
            let id = item.entry.as_ref().and_then(|entry| entry.image_id.as_ref());
            let image = id.and_then(|id| images::sizes().get(id).copied()).unwrap_or(0);
            object.insert("SizeRw".into(), own.into());
            object.insert("SizeRootFs".into(), own.saturating_add(image).into());
        }
        shown
    }

    /// What is known of the one that `word` means: an image only where there is nothing else of that name.
    fn find(&self, items: &[Item], word: &str) -> Result<Value, String> {
        let kind = self.kind.as_deref();
        let found = match find(items, word) {
            Ok(item) if kind.is_none_or(|kind| kind == item.kind().as_str()) => return Ok(self.shown(item)),
            Ok(_) => chain(&InstanceError::NotFound(word.into())),
            Err(message) => unreadable(word).map_or(Ok(message), Err)?,
        };
        let image = kind.is_none_or(|kind| kind == "image").then(|| images::inspect::inspect(word));
        image.transpose()?.flatten().ok_or(found)
    }
}

/// What is wrong with the record of what `word` means, where it has one that can't be read.
fn unreadable(word: &str) -> Option<String> {
    let is_record =
        |error: &InstanceError| matches!(error, InstanceError::Record { .. } | InstanceError::Kept { .. });
    let running = Registry::of_user().find(word).err().filter(is_record);
    let error = running.or_else(|| targets::kept(word).err().filter(is_record));
    error.map(|error| chain(&error))
}

/// The one of `items` that `word` means.
fn find<'a>(items: &'a [Item], word: &str) -> Result<&'a Item, String> {
    let named = items.iter().find(|item| item.name().as_deref() == Some(word) || item.id() == word);
    if let Some(item) = named {
        return Ok(item);
    }
    let mut begun = items.iter().filter(|item| !word.is_empty() && item.id().starts_with(word));
    match (begun.next(), begun.next()) {
        (Some(item), None) => Ok(item),
        (None, _) => Err(chain(&InstanceError::NotFound(word.into()))),
        (Some(_), Some(_)) => Err(chain(&InstanceError::Ambiguous(word.into()))),
    }
}
