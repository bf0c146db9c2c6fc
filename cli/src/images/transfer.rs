//! `mvm load` and `mvm save`.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use image::SaveFormat;

use super::registry::{RegistryArguments, UnpackedArguments};
use super::store;
use super::worker::{Failure, Input, Job, Outcome, Task};
use crate::complaint::complete;
use crate::output::to_file;
use crate::process::ExitCode;
use crate::{chain, events, exit_code, print};

const LOAD_EXAMPLES: &str = "\
Examples:
  mvm load -i image.tar
  docker save alpine | mvm load
  mvm load -i layout/            an OCI layout";

/// Arguments of `mvm load`.
#[derive(Args)]
#[command(after_long_help = LOAD_EXAMPLES)]
pub struct LoadCommand {
    /// Read this file or directory in place of standard input
    #[arg(long, short, value_name = "PATH")]
    input: Option<PathBuf>,

    /// Print only IDs
    #[arg(long, short)]
    quiet: bool,

    #[command(flatten)]
    unpacked: UnpackedArguments,
}

impl LoadCommand {
    /// Loads the images of an archive.
    pub fn run(self) -> ExitCode {
        complete(self.load())
    }

    fn load(self) -> Result<ExitCode, String> {
        let store = store()?;
        let (job, input) = match &self.input {
            Some(path) if path.is_dir() => (Job::LoadDirectory, Input::Directory(path.clone())),
            Some(path) => {
                let file =
                    File::open(path).map_err(|error| format!("cannot open {}: {error}", path.display()))?;
                (Job::Load, Input::File(file.into()))
            }
            None if io::stdin().is_terminal() => {
                return Err("standard input is a terminal: give an archive by `-i FILE` or `< FILE`".into());
            }
            None => (Job::Load, Input::Stdin),
        };
        let task = Task {
            job,
            store: Some(store.root()),
            registry: &RegistryArguments { plain_http: false, unpacked: self.unpacked },
            registries: Vec::new(),
            input,
            progress: &(),
        };
        let loaded = match task.run().map_err(Failure::into_line)? {
            Outcome::Loaded(loaded) => loaded,
            _ => Vec::new(),
        };
        let mut said = String::new();
        for image in loaded {
            let id = image.id.to_string();
            let name = image.references.first().map_or_else(|| id.clone(), ToString::to_string);
            events::note_image("load", &id, &name);
            if self.quiet {
                said.push_str(&format!("{}\n", image.id));
            } else if image.references.is_empty() {
                said.push_str(&format!("Loaded image ID: {}\n", image.id));
            }
            for reference in image.references.iter().filter(|_| !self.quiet) {
                said.push_str(&format!("Loaded image: {reference}\n"));
            }
        }
        Ok(print(said.as_bytes(), exit_code::SUCCESS))
    }
}

const SAVE_EXAMPLES: &str = "\
Examples:
  mvm save -o alpine.tar alpine
  mvm save alpine | docker load
  mvm save --format oci -o alpine.oci.tar alpine";

/// What an archive is.
#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Docker,
    Oci,
}

/// Arguments of `mvm save`.
#[derive(Args)]
#[command(after_long_help = SAVE_EXAMPLES)]
pub struct SaveCommand {
    /// Write this file in place of standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Make an archive of this kind: docker or oci
    #[arg(long, value_name = "KIND", default_value = "docker", hide_possible_values = true)]
    format: Format,

    /// The images
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

impl SaveCommand {
    /// Writes an archive of images.
    pub fn run(self) -> ExitCode {
        complete(self.save())
    }

    fn save(self) -> Result<ExitCode, String> {
        let names: Vec<&str> = self.images.iter().map(String::as_str).collect();
        let format = match self.format {
            Format::Docker => SaveFormat::Docker,
            Format::Oci => SaveFormat::Oci,
        };
        let store = store()?;
        match &self.output {
            Some(path) => {
                to_file(path, |file| store.save(&names, format, &*file).map_err(|error| chain(&error)))?
            }
            None if io::stdout().is_terminal() => {
                return Err("standard output is a terminal: give a file by `-o FILE` or `> FILE`".into());
            }
            None => {
                let mut out = io::stdout().lock();
                store.save(&names, format, &mut out).map_err(|error| chain(&error))?;
                out.flush().map_err(|error| format!("cannot write to standard output: {error}"))?;
            }
        }
        for name in names {
            if let Ok(image) = super::find(name) {
                events::note_image("save", &image.id.to_string(), name);
            }
        }
        Ok(exit_code::SUCCESS.into())
    }
}
