//! `mvm pull` and `mvm push`.

use std::collections::HashMap;
use std::io::{self, IsTerminal};
use std::sync::{Mutex, PoisonError};

use clap::Args;
use image::{Client, Digest, Mirror, Progress, PullEvent, Pulled, Reference, RegistryOptions, Store};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::{complete, store};
use crate::process::ExitCode;
use crate::{chain, exit_code, print};

/// A registry, or several with commas between them, that is asked before Docker Hub.
const MIRRORS: &str = "MVM_REGISTRY_MIRROR";

const PULL_EXAMPLES: &str = "\
Examples:
  mvm pull alpine:3.20
  mvm pull ghcr.io/owner/image@sha256:…
  mvm pull --plain-http registry.lan:5000/tools

Credentials are those of `docker login` and `podman login`. MVM_REGISTRY_MIRROR=HOST names
a registry that is asked before Docker Hub.";

/// How registries are reached.
#[derive(Args, Clone, Copy)]
pub struct RegistryArguments {
    /// Use plain HTTP, as is tried for registries on this host
    #[arg(long)]
    plain_http: bool,
}

impl RegistryArguments {
    fn client(self) -> Client {
        let given = std::env::var(MIRRORS).unwrap_or_default();
        let hosts = given.split(',').map(str::trim).filter(|host| !host.is_empty());
        let mirrors = hosts.map(|host| Mirror { of: "docker.io".into(), host: host.to_owned() }).collect();
        let plain_http = self.plain_http;
        Client::new(RegistryOptions { plain_http, mirrors, ..RegistryOptions::default() })
    }
}

/// Arguments of `mvm pull`.
#[derive(Args)]
#[command(after_long_help = PULL_EXAMPLES)]
pub struct PullCommand {
    /// Print only the image's name
    #[arg(long, short)]
    quiet: bool,

    #[command(flatten)]
    registry: RegistryArguments,

    /// The image
    #[arg(value_name = "IMAGE")]
    reference: Reference,
}

impl PullCommand {
    /// Pulls an image.
    pub fn run(self) -> ExitCode {
        complete(self.pull())
    }

    fn pull(self) -> Result<ExitCode, String> {
        let pulled = pull(&store()?, self.registry, &self.reference, self.quiet)?;
        let name = self.reference.canonical();
        let said = if self.quiet {
            format!("{name}\n")
        } else {
            let status = if pulled.is_new { "Downloaded newer image" } else { "Image is up to date" };
            format!("Digest: {}\nStatus: {status} for {}\n{name}\n", pulled.digest, self.reference)
        };
        Ok(print(said.as_bytes(), exit_code::SUCCESS))
    }
}

/// Pulls an image, and shows how that goes on a terminal.
///
/// # Errors
///
/// A line for the user.
pub fn pull(
    store: &Store,
    registry: RegistryArguments,
    reference: &Reference,
    quiet: bool,
) -> Result<Pulled, String> {
    let bars = Bars::default();
    let progress: &dyn Progress = if !quiet && io::stderr().is_terminal() { &bars } else { &() };
    let pulled = store.pull(&registry.client(), reference, progress);
    bars.finish();
    pulled.map_err(|error| format!("cannot pull {reference}: {}", chain(&error)))
}

const PUSH_EXAMPLES: &str = "\
Examples:
  mvm tag tools:1.2 registry.lan:5000/tools:1.2
  mvm push registry.lan:5000/tools:1.2";

/// Arguments of `mvm push`.
#[derive(Args)]
#[command(after_long_help = PUSH_EXAMPLES)]
pub struct PushCommand {
    #[command(flatten)]
    registry: RegistryArguments,

    /// The image, by the name that it gets in the registry
    #[arg(value_name = "IMAGE")]
    reference: Reference,
}

impl PushCommand {
    /// Pushes an image.
    pub fn run(self) -> ExitCode {
        complete(self.push())
    }

    fn push(self) -> Result<ExitCode, String> {
        let pushed = store()?.push(&self.registry.client(), &self.reference.to_string(), &self.reference);
        let digest = pushed.map_err(|error| format!("cannot push {}: {}", self.reference, chain(&error)))?;
        let tag = self.reference.tag().unwrap_or("latest");
        Ok(print(format!("{tag}: digest: {digest}\n").as_bytes(), exit_code::SUCCESS))
    }
}

/// A bar for each layer.
#[derive(Default)]
struct Bars {
    all: MultiProgress,
    layers: Mutex<HashMap<Digest, ProgressBar>>,
}

impl Bars {
    fn finish(&self) {
        for bar in self.layers.lock().unwrap_or_else(PoisonError::into_inner).values() {
            bar.abandon();
        }
    }

    fn set(&self, digest: Digest, change: impl FnOnce(&ProgressBar)) {
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let bar = layers.entry(digest).or_insert_with(|| {
            let bar = self.all.add(ProgressBar::new(1));
            let style = ProgressStyle::with_template("{prefix}: {msg:12} {bar:30} {bytes} of {total_bytes}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(digest.hex().chars().take(12).collect::<String>());
            bar
        });
        change(bar);
    }
}

impl Progress for Bars {
    fn event(&self, event: PullEvent) {
        match event {
            PullEvent::Exists { digest } => self.set(digest, |bar| bar.finish_with_message("exists")),
            PullEvent::Downloading { digest, done, total } => self.set(digest, |bar| {
                bar.set_message("downloading");
                bar.set_length(total);
                bar.set_position(done);
            }),
            PullEvent::Unpacking { digest } => self.set(digest, |bar| bar.set_message("unpacking")),
            PullEvent::Complete { digest } => self.set(digest, |bar| bar.finish_with_message("complete")),
        }
    }
}
