//! `mvm import`.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use clap::Args;
use image::{Loaded, Reference};
use instance::time;
use serde_json::Value;

use super::registry::RegistryArguments;
use super::worker::{Failure, Input, Job, Outcome, Task};
use super::{change, store};
use crate::complaint::complete;
use crate::process::ExitCode;
use crate::{events, exit_code, print};

const EXAMPLES: &str = "\
Examples:
  mvm import rootfs.tar.gz tools:1.2
  tar -C rootfs -c . | mvm import --change 'CMD [\"/bin/sh\"]' - tools

Instructions of --change: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD,
STOPSIGNAL, USER, VOLUME and WORKDIR, as in a Dockerfile.";

/// Arguments of `mvm import`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct ImportCommand {
    /// Apply an instruction of a Dockerfile to the image
    #[arg(long, short, value_name = "CHANGE")]
    change: Vec<String>,

    /// Set what the image's history says
    #[arg(long, short, value_name = "TEXT")]
    message: Option<String>,

    /// A tar archive, also compressed with gzip or zstd; - is standard input
    file: PathBuf,

    /// The reference that the image gets
    #[arg(value_name = "REFERENCE")]
    reference: Option<Reference>,
}

impl ImportCommand {
    /// Makes an image of an archive.
    pub fn run(self) -> ExitCode {
        complete(self.import())
    }

    fn import(self) -> Result<ExitCode, String> {
        let shown = self.file.display().to_string();
        if shown.starts_with("http://") || shown.starts_with("https://") {
            return Err(format!("cannot import {shown}: fetch it first, as in `curl URL | mvm import -`"));
        }
        let config = change::config(&self.change)?;
        let comment = self.message.clone().unwrap_or_else(|| format!("Imported from {shown}"));
        let loaded = self.load(&config, &comment)?;
        let id = loaded.id.to_string();
        let name = self.reference.as_ref().map_or_else(|| id.clone(), ToString::to_string);
        events::note_image("import", &id, &name);
        Ok(print(format!("{}\n", loaded.id).as_bytes(), exit_code::SUCCESS))
    }

    fn load(&self, config: &Value, comment: &str) -> Result<Loaded, String> {
        let store = store()?;
        let input = if self.file == Path::new("-") {
            if io::stdin().is_terminal() {
                return Err("standard input is a terminal: give an archive by its name or `< FILE`".into());
            }
            Input::Stdin
        } else {
            let file = File::open(&self.file);
            Input::File(file.map_err(|error| format!("cannot open {}: {error}", self.file.display()))?.into())
        };
        let task = Task {
            job: Job::Import {
                config: config.to_string(),
                created: time::rfc3339(time::since_1970()),
                comment: comment.to_owned(),
                reference: self.reference.as_ref().map(ToString::to_string),
            },
            store: Some(store.root()),
            registry: &RegistryArguments::default(),
            registries: Vec::new(),
            input,
            progress: &(),
        };
        let cannot = |line: String| format!("cannot import {}: {line}", self.file.display());
        match task.run().map_err(Failure::into_line) {
            Ok(Outcome::Loaded(mut loaded)) => loaded.pop().ok_or_else(|| cannot("there is no image".into())),
            Ok(_) => Err(cannot("there is no image".into())),
            Err(line) => Err(cannot(line)),
        }
    }
}
