//! `mvm template`.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command as Program, Stdio};
use std::time::Duration;

use clap::{Args, Subcommand};
use container::{
    Assets, Image, ListedTemplate, NetworkOption, Origin, Prepared, RunOptions, Shape, Template,
    TemplateError, TemplateRoot, Templates, VerifiedTemplate,
};
use serde_json::{Value, json};
use vmm::MemorySize;

use crate::complaint::{Complaint, complete};
use crate::defaults::{Defaults, TemplateUse};
use crate::format::{Column, Format};
use crate::images::human;
use crate::process::ExitCode;
use crate::run::{default_network, milli_cpus};
use crate::values::check_memory;
use crate::{exit_code, images, print, snapshot};

const EXAMPLES: &str = "\
Examples:
  mvm template build
  mvm template build --cpus 2 --memory 512m --network none
  mvm template build --rm alpine
  mvm template ls
  mvm template verify
  mvm template prune";

/// How long another process that makes a template is waited for.
const PATIENCE: Duration = Duration::from_secs(120);
const BUILD_EXAMPLES: &str = "\
Examples:
  mvm template build
  mvm template build --cpus 2 --memory 512m --network none
  mvm template build --folders
  mvm template build --rm --network none alpine

Exit codes: 0, 1 while another process makes one, 2 for wrong usage,
3 where the host cannot make it.";

const LIST_EXAMPLES: &str = "\
Examples:
  mvm template ls
  mvm template ls --format '{{.Name}} {{.Size}}'

MEMORY is what the VM has: the containers' --memory, a sixteenth of it and
96 MiB for the guest's kernel and agent (640M with --memory 512m).
Fields of templates: Name, CPUs, Memory, Network, For, Folders, Image, Size,
Used.";

const VERIFY_EXAMPLES: &str = "\
Examples:
  mvm template verify

Exit codes: 0, or 2 where one was altered. `mvm template prune` removes it.";

const PRUNE_EXAMPLES: &str = "\
Examples:
  mvm template prune";

/// The columns of `mvm template ls`.
const COLUMNS: &[Column] = &[
    ("Name", "NAME"),
    ("CPUs", "CPUS"),
    ("Memory", "MEMORY"),
    ("Network", "NETWORK"),
    ("For", "FOR"),
    ("Folders", "FOLDERS"),
    ("Image", "IMAGE"),
    ("Size", "SIZE"),
    ("Used", "USED"),
];

/// Arguments of `mvm template`.
#[derive(Args)]
#[command(after_help = EXAMPLES, disable_help_subcommand = true, arg_required_else_help = true)]
pub struct TemplateCommand {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the template for containers with these options, or of an image
    Build(BuildCommand),
    /// List templates
    #[command(alias = "list")]
    Ls(ListCommand),
    /// Compare templates with the digests that they had when they were made
    Verify(VerifyCommand),
    /// Remove all templates
    Prune(PruneCommand),
}

/// Arguments of `mvm template build`.
#[derive(Args)]
#[command(after_long_help = BUILD_EXAMPLES)]
struct BuildCommand {
    /// Make the template for containers of this image alone; it has to be in the store
    image: Option<String>,

    /// Set how many processors the containers have
    #[arg(long, value_name = "N", value_parser = milli_cpus)]
    cpus: Option<u64>,

    /// Set the memory of the containers, as `mvm run --memory` does; their VM has more
    #[arg(long, short, value_name = "SIZE")]
    memory: Option<MemorySize>,

    /// Set what the containers are connected to: user or none; those with a tap or bridge boot
    #[arg(long, value_name = "NET", value_parser = network)]
    network: Option<NetworkOption>,

    /// Make it for containers with folders or files of the host (-v ./x:/x)
    #[arg(long)]
    folders: bool,

    /// Make it for pods with these options
    #[arg(long, conflicts_with = "image")]
    pod: bool,

    /// Make it for containers of IMAGE that are removed when they end, as `mvm run --rm` does
    #[arg(long, requires = "image")]
    rm: bool,

    /// The same as the VM has them: vCPUs, bytes of memory, whether there is a network, and for what it is
    #[arg(long, hide = true, value_parser = shape)]
    shape: Option<Shape>,
}

/// Of a network that the user or the configuration file names.
const NO_BRIDGE: &str = "templates are for user and none alone; containers with a bridge or tap boot";

fn network(text: &str) -> Result<NetworkOption, String> {
    if text.starts_with("bridge=") || text.starts_with("tap=") {
        return Err(NO_BRIDGE.into());
    }
    text.parse::<NetworkOption>().map_err(|error| error.to_string())
}

fn shape(text: &str) -> Result<Shape, String> {
    let parsed = || {
        let mut words = text.split(',');
        let (cpus, memory) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let has_network = words.next()? == "user";
        let words: Vec<_> = words.collect();
        let has = |word| words.contains(&word);
        Some(Shape { cpus, memory, has_network, has_share: has("share"), is_pod: has("pod") })
    };
    parsed().ok_or_else(|| "invalid shape: use CPUS,BYTES,user or none[,share][,pod]".into())
}

fn text_of(Shape { cpus, memory, has_network, has_share, is_pod }: Shape) -> String {
    let network = if has_network { "user" } else { "none" };
    let (share, pod) = (if has_share { ",share" } else { "" }, if is_pod { ",pod" } else { "" });
    format!("{cpus},{memory},{network}{share}{pod}")
}

/// Arguments of `mvm template ls`.
#[derive(Args)]
#[command(after_long_help = LIST_EXAMPLES)]
struct ListCommand {
    /// Print json, "table TEMPLATE" or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
}

/// Arguments of `mvm template prune`.
#[derive(Args)]
#[command(after_long_help = PRUNE_EXAMPLES)]
struct PruneCommand {}

/// Arguments of `mvm template verify`.
#[derive(Args)]
#[command(after_long_help = VERIFY_EXAMPLES)]
struct VerifyCommand {}

impl TemplateCommand {
    /// Runs the command.
    pub fn run(self) -> ExitCode {
        match self.command {
            Command::Build(command) => complete(command.build()),
            Command::Ls(command) => complete(command.list()),
            Command::Verify(VerifyCommand {}) => complete(verify()),
            Command::Prune(PruneCommand {}) => complete(prune()),
        }
    }
}

fn templates() -> Result<Templates, Complaint> {
    Templates::of_user().map_err(|error| Complaint::host(&error))
}

impl BuildCommand {
    fn build(self) -> Result<ExitCode, Complaint> {
        let usage = |line: String| Complaint { line, code: exit_code::USAGE };
        let defaults = Defaults::read().map_err(usage)?;
        let network = self.network.or(defaults.network).unwrap_or_else(|| default_network(false));
        if let NetworkOption::Tap(..) | NetworkOption::Bridge(..) = network {
            return Err(usage(format!("--network: {NO_BRIDGE}")));
        }
        let memory = self.memory.or(defaults.memory).map(MemorySize::bytes).filter(|bytes| *bytes > 0);
        check_memory(memory).map_err(usage)?;
        let assets = Assets::find().map_err(|error| Complaint::host(&error))?;
        let options = RunOptions {
            milli_cpus: self.cpus.or(defaults.cpus),
            memory,
            network: match self.shape {
                Some(shape) if !shape.has_network => NetworkOption::None,
                Some(_) => NetworkOption::User { reaches_host: false },
                None => network,
            },
            // No container runs in it, and it has no control group.
            jail: defaults.jail.filter(|mode| *mode == jail::Mode::Off).unwrap_or_default(),
            jail_ids: defaults.jail_ids,
            ..RunOptions::default()
        };
        let (has_share, is_pod) = (self.folders, self.pod);
        let asked = || Some(Shape { has_share, is_pod, ..Shape::of(&options, &Prepared::default())? });
        let boots = || usage("there is no template for these options: containers with them boot".into());
        let shape = self.shape.or_else(asked).ok_or_else(boots)?;
        // One that a command has started in the background waits for no other.
        let patience = if self.shape.is_some() { Duration::ZERO } else { PATIENCE };
        let stored = |name: &String| images::open_stored(name, || images::missing(name));
        let (image, hold) = self.image.as_ref().map(stored).transpose()?.unzip();
        let root = image.as_ref().and_then(|image| TemplateRoot::of(image, &options, self.rm));
        let made = templates()?.make(&assets, (shape, root.as_ref()), &options, patience, &digest);
        drop(hold);
        match made.map_err(|error| Complaint::host(&error))? {
            true => Ok(exit_code::SUCCESS.into()),
            false => {
                let seconds = patience.as_secs();
                Err(format!("another process has been making a template for {seconds} s: try again later")
                    .into())
            }
        }
    }
}

impl ListCommand {
    fn list(self) -> Result<ExitCode, Complaint> {
        let now = std::time::SystemTime::now();
        let row = |template: ListedTemplate| -> Value {
            let age = now.duration_since(template.used).unwrap_or_default().as_secs();
            let of = |part: &dyn Fn(Shape) -> String| template.shape.map_or_else(|| "-".into(), part);
            json!({
                "Name": template.name,
                "CPUs": of(&|shape| shape.cpus.to_string()),
                "Memory": of(&|shape| MemorySize::from_bytes(shape.memory).to_string()),
                "Network": of(&|shape| if shape.has_network { "user".into() } else { "none".into() }),
                "For": of(&|shape| if shape.is_pod { "pods".into() } else { "containers".into() }),
                "Folders": of(&|shape| if shape.has_share { "yes".into() } else { "no".into() }),
                "Image": template.image.unwrap_or_else(|| "-".into()),
                "Size": human::size(template.bytes),
                "Used": format!("{} ago", human::duration(i64::try_from(age).unwrap_or(i64::MAX))),
            })
        };
        let rows: Vec<Value> = templates()?.all().into_iter().map(row).collect();
        let format = self.format.unwrap_or(Format::Table(None));
        // What it is for is in its name.
        let is_shown = |field: &&str| !["For", "Folders", "Image"].contains(field);
        let shown: Vec<&str> = COLUMNS.iter().map(|(field, _)| *field).filter(is_shown).collect();
        Ok(print(format.list(COLUMNS, &shown, &rows)?.as_bytes(), exit_code::SUCCESS))
    }
}

/// The digest of a template's file, as its manifest has it.
fn digest(file: &mut File) -> io::Result<String> {
    snapshot::digest_of_pages(file).map(|digest| digest.to_string())
}

fn verify() -> Result<ExitCode, Complaint> {
    let (mut text, mut code) = (String::new(), exit_code::SUCCESS);
    for (ListedTemplate { name, .. }, verified) in templates()?.verify(&digest) {
        let word = match verified {
            VerifiedTemplate::Whole => "whole".to_owned(),
            VerifiedTemplate::Unknown => "not used: made by another version of mvm".to_owned(),
            VerifiedTemplate::Altered(file) => {
                code = exit_code::USAGE;
                format!("altered: {file}")
            }
        };
        text += &format!("{name}  {word}\n");
    }
    Ok(print(text.as_bytes(), code))
}

fn prune() -> Result<ExitCode, Complaint> {
    let gone = templates()?.forget(0);
    let freed = gone.iter().map(|template| template.bytes).sum();
    let text: String = gone.iter().map(|template| format!("{}\n", template.name)).collect();
    Ok(print(format!("{text}Total reclaimed space: {}\n", human::size(freed)).as_bytes(), exit_code::SUCCESS))
}

/// A template that a VM would have started from.
pub struct Missing {
    shape: Shape,
    root: Option<TemplateRoot>,
}

/// A container whose VM is about to start.
pub struct Start<'a> {
    /// Its image.
    pub image: &'a Image,
    /// Its options.
    pub options: &'a RunOptions,
    /// Its volumes, and folders and files of the host.
    pub mounts: &'a Prepared,
    /// It has not run before, and so has no changes.
    pub is_new: bool,
    /// It is removed when it ends.
    pub removes: bool,
}

/// What the VM of a container starts from: a template of its image, one for all images, or its kernel. The one that it
/// would rather have started from is in `missing`; that of an image is made of one that is for all.
pub fn find(assets: &Assets, start: &Start<'_>, missing: &mut Option<Missing>) -> Origin {
    let Start { image, options, mounts, is_new, removes } = *start;
    let Some(shape) = Shape::of(options, mounts) else { return Origin::Boot };
    let root = is_new.then(|| TemplateRoot::of(image, options, removes)).flatten();
    let of_image = root.as_ref().and_then(|root| open(assets, shape, Some(root)));
    let is_of_image = of_image.is_some();
    match of_image.or_else(|| find_of(assets, shape, missing)) {
        Some(template) => {
            if !is_of_image && let Some(root) = root {
                *missing = Some(Missing { shape, root: Some(root) });
            }
            Origin::Template(template)
        }
        None => Origin::Boot,
    }
}

/// The template for a VM of `shape`.
pub fn find_of(assets: &Assets, shape: Shape, missing: &mut Option<Missing>) -> Option<Template> {
    let opened = open(assets, shape, None);
    if opened.is_none() {
        *missing = Some(Missing { shape, root: None });
    }
    opened
}

fn open(assets: &Assets, shape: Shape, root: Option<&TemplateRoot>) -> Option<Template> {
    let templates = Templates::of_user().ok()?;
    let opened = templates.open(assets, shape, root).unwrap_or_else(|error: TemplateError| {
        tracing::warn!(error = &error as &dyn std::error::Error, "a template is damaged: it is made again");
        templates.discard(shape, root);
        None
    });
    if opened.is_some() {
        let of = if root.is_some() { " of its image" } else { "" };
        tracing::info!("the VM goes on from template {}{of}", shape.name());
    }
    opened
}

/// Starts a process in the background that makes a template, when nothing else wants the processor.
pub fn make_in_the_background(missing: Missing) {
    let Missing { shape, root } = missing;
    if Defaults::read().is_ok_and(|defaults| defaults.templates == Some(TemplateUse::Manual)) {
        return;
    }
    let mut program = Program::new("/proc/self/exe");
    program.args(["template", "build", "--shape", &text_of(shape)]);
    if let Some((image, removes)) = root.as_ref().map(TemplateRoot::words) {
        program.args(removes.then_some("--rm")).arg(image);
    }
    program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
    // SAFETY: both are system calls, which may be made between fork and exec.
    unsafe {
        program.pre_exec(|| {
            libc::setsid();
            libc::nice(19);
            Ok(())
        });
    }
    // It is not waited for: it outlives this process.
    if let Err(error) = program.spawn() {
        tracing::warn!(%error, "cannot start a process that makes a template");
    }
}
