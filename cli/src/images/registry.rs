//! `mvm pull` and `mvm push`.

use std::collections::HashMap;
use std::io::{self, IsTerminal};
use std::sync::{Mutex, PoisonError};

use clap::Args;
use image::{Digest, Mirror, Progress, PullEvent, Pulled, Reference, Store};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use vmm::MemorySize;

use super::store;
use super::worker::{Input, Job, Outcome, Task};
use crate::complaint::complete;
use crate::process::ExitCode;
use crate::{events, exit_code, print};

/// A registry, or several with commas between them, that is asked before Docker Hub.
const MIRRORS: &str = "MVM_REGISTRY_MIRROR";

const PULL_EXAMPLES: &str = "\
Examples:
  mvm pull alpine:3.20
  mvm pull ghcr.io/owner/image@sha256:…
  mvm pull --plain-http registry.lan:5000/tools

Credentials are those of `mvm login`, `docker login` and `podman login`.
MVM_REGISTRY_MIRROR=HOST names a registry that is asked before Docker Hub.";

/// How registries are reached.
#[derive(Args, Clone, Copy, Default)]
pub struct RegistryArguments {
    /// Use plain HTTP, as is tried for registries on this host
    #[arg(long)]
    pub plain_http: bool,

    #[command(flatten)]
    pub unpacked: UnpackedArguments,
}

/// How much may be unpacked.
#[derive(Args, Clone, Copy, Default)]
pub struct UnpackedArguments {
    /// Refuse an image whose layers are larger than this: 64G
    #[arg(long, value_name = "SIZE", hide_short_help = true)]
    max_unpacked: Option<MemorySize>,
}

impl UnpackedArguments {
    /// Bytes that the layers may have together.
    pub fn max_unpacked(self) -> u64 {
        self.max_unpacked.map_or(image::MAX_UNPACKED, MemorySize::bytes)
    }
}

impl RegistryArguments {
    /// Registries that are asked before Docker Hub.
    pub fn mirrors() -> Vec<Mirror> {
        let given = std::env::var(MIRRORS).unwrap_or_else(|_| crate::defaults::registry_mirrors());
        let hosts = given.split(',').map(str::trim).filter(|host| !host.is_empty());
        hosts.map(|host| Mirror { of: "docker.io".into(), host: host.to_owned() }).collect()
    }
}

/// The registries that a reference is pulled from.
fn registries(reference: &Reference) -> Vec<String> {
    let mirrors = RegistryArguments::mirrors().into_iter().filter(|mirror| mirror.of == reference.registry());
    mirrors.map(|mirror| mirror.host).chain([reference.registry().to_owned()]).collect()
}

/// Arguments of `mvm pull`.
#[derive(Args)]
#[command(after_long_help = PULL_EXAMPLES)]
pub struct PullCommand {
    /// Print only the image's name
    #[arg(long, short)]
    quiet: bool,

    /// Pull the image of this platform: linux/amd64
    #[arg(long, value_name = "PLATFORM", value_parser = crate::run::platform, hide = true)]
    platform: Option<String>,

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
    let task = Task {
        job: Job::Pull(reference.to_string()),
        store: Some(store.root()),
        registry: &registry,
        registries: registries(reference),
        input: Input::None,
        progress: if !quiet && io::stderr().is_terminal() { &bars } else { &() },
    };
    let pulled = task.run();
    bars.finish();
    match pulled {
        Ok(Outcome::Pulled(pulled)) => {
            events::note_image("pull", &reference.to_string(), &reference.to_string());
            Ok(pulled)
        }
        Ok(_) => Err(format!("cannot pull {reference}")),
        Err(error) => Err(format!("cannot pull {reference}: {}", error.into_line())),
    }
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
        let store = store()?;
        let task = Task {
            job: Job::Push(self.reference.to_string()),
            store: Some(store.root()),
            registry: &self.registry,
            registries: vec![self.reference.registry().to_owned()],
            input: Input::None,
            progress: &(),
        };
        let cannot = |line: &str| format!("cannot push {}{line}", self.reference);
        let digest = match task.run() {
            Ok(Outcome::Pushed(digest)) => digest,
            Ok(_) => return Err(cannot("")),
            Err(error) => return Err(cannot(&format!(": {}", error.into_line()))),
        };
        events::note_image("push", &self.reference.to_string(), &self.reference.to_string());
        let tag = self.reference.tag().unwrap_or("latest");
        Ok(print(format!("{tag}: digest: {digest}\n").as_bytes(), exit_code::SUCCESS))
    }
}

/// The most layers of an image.
pub const MAX_BARS: usize = 127;

/// A bar for each layer.
#[derive(Default)]
pub struct Bars {
    all: MultiProgress,
    layers: Mutex<HashMap<Digest, ProgressBar>>,
}

impl Bars {
    fn finish(&self) {
        for bar in self.layers.lock().unwrap_or_else(PoisonError::into_inner).values() {
            bar.abandon();
        }
    }

    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn set(&self, digest: Digest, change: impl FnOnce(&ProgressBar)) {
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        if layers.len() >= MAX_BARS && !layers.contains_key(&digest) {
            return;
        }
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
