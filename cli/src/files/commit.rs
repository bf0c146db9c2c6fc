//! `mvm commit`.

use std::io;

use clap::{ArgAction, Args};
use image::Reference;
use instance::{Entry, time};
use serde_json::{Map, Value, json};

use super::progress::Progress;
use super::relay::relay;
use super::{Opened, with};
use crate::images::worker::{Job, Outcome, Task};
use crate::images::{self, RegistryArguments, change};
use crate::process::ExitCode;
use crate::{complain, events, exit_code, print};
use container::FilesError;

const EXAMPLES: &str = "\
Examples:
  mvm commit web web:fixed
  mvm commit -a 'A. Name' -m 'with tools' -c 'CMD [\"/bin/sh\"]' web tools:1

Instructions of --change: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD,
STOPSIGNAL, USER, VOLUME and WORKDIR, as in a Dockerfile.";

/// Arguments of `mvm commit`, which are those of `docker commit`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct CommitCommand {
    /// Set who has made the image
    #[arg(long, short, value_name = "TEXT")]
    author: Option<String>,

    /// Apply an instruction of a Dockerfile to the image
    #[arg(long, short, value_name = "CHANGE")]
    change: Vec<String>,

    /// Set what the image's history says
    #[arg(long, short, value_name = "TEXT")]
    message: Option<String>,

    /// Have the container's processes stand still meanwhile: true or false
    #[arg(
        long,
        short,
        value_name = "BOOL",
        default_value = "true",
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true,
        action = ArgAction::Set,
        hide_possible_values = true
    )]
    pause: bool,

    /// The container: its ID, the beginning of that, or its name
    #[arg(value_name = "CONTAINER")]
    container: String,

    /// The reference that the image gets
    #[arg(value_name = "REFERENCE")]
    reference: Option<Reference>,
}

impl CommitCommand {
    /// Makes an image of a container.
    pub fn run(self) -> ExitCode {
        match change::config(&self.change) {
            Ok(changes) => with(&self.container, |opened| self.commit(opened, &changes)),
            Err(message) => {
                complain(&message);
                exit_code::FAILURE.into()
            }
        }
    }

    fn commit(&self, opened: &Opened, changes: &Value) -> Result<ExitCode, String> {
        let store = images::store()?;
        let entry = opened.entry.as_ref().ok_or_else(|| opened.line(&FilesError::NotAContainer))?;
        let parent = entry.image_id.clone().ok_or_else(|| format!("{}: it has no image", self.container))?;
        images::find(&parent).map_err(|line| format!("{}: {line}", self.container))?;
        let own = of_container(entry);
        let stream = opened.files.layer(self.pause).map_err(|error| opened.line(&error))?;
        let job = Job::Commit {
            parent,
            changes: [&own, changes].into_iter().map(Value::to_string).collect(),
            created: time::rfc3339(time::since_1970()),
            created_by: entry.command.join(" "),
            author: self.author.clone(),
            comment: self.message.clone().unwrap_or_default(),
            reference: self.reference.as_ref().map(ToString::to_string),
        };
        let registry = RegistryArguments::default();
        let task = |input| Task {
            job,
            store: Some(store.root()),
            registry: &registry,
            registries: Vec::new(),
            input,
            progress: &(),
        };
        let mut progress = Progress::new("Copying from container", false);
        let outcome = relay(stream, &mut progress, |error| opened.line(error), task, None);
        drop(progress);
        let cannot = |line: &str| format!("cannot commit {}: {line}", self.container);
        match outcome.map_err(|line| cannot(&line))? {
            Outcome::Loaded(loaded) => match loaded.first() {
                Some(image) => {
                    let id = image.id.to_string();
                    let reference = self.reference.as_ref().map(ToString::to_string).unwrap_or_default();
                    let attributes = [
                        ("comment", self.message.as_deref().unwrap_or_default()),
                        ("imageID", &id),
                        ("imageRef", &reference),
                    ];
                    events::note(entry, "commit", &attributes);
                    Ok(print(format!("{id}\n").as_bytes(), exit_code::SUCCESS))
                }
                None => Err(cannot("there is no image")),
            },
            _ => Err(cannot(&io::Error::from(io::ErrorKind::InvalidData).to_string())),
        }
    }
}

/// What the container's options have made of its image's configuration, as `mvm inspect` shows them.
fn of_container(entry: &Entry) -> Value {
    let mut config = Map::new();
    let shown = entry.details.get("Config").unwrap_or(&Value::Null);
    let text =
        |name: &str| shown.get(name).filter(|value| value.as_str().is_some_and(|text| !text.is_empty()));
    for name in ["User", "WorkingDir", "StopSignal"] {
        if let Some(value) = text(name) {
            config.insert(name.into(), value.clone());
        }
    }
    if let Some(env) = shown.get("Env").filter(|env| env.is_array()) {
        config.insert("Env".into(), env.clone());
    }
    if !entry.labels.is_empty() {
        config.insert("Labels".into(), json!(entry.labels));
    }
    for name in ["Entrypoint", "Cmd"] {
        config.insert(name.into(), shown.get(name).cloned().unwrap_or_default());
    }
    Value::Object(config)
}
