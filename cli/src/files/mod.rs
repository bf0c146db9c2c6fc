//! Files of containers: `mvm cp`, `mvm diff`, `mvm export` and `mvm commit`; the first is for VMs too.

mod commit;
mod cp;
mod diff;
mod export;
mod paths;
mod progress;
mod relay;
mod stopped;

use container::{Files, FilesError, Visit};
use instance::{Entry, InstanceError, Kind, Registry, Running};

pub use commit::CommitCommand;
pub use cp::{CpCommand, raise_open_files};
pub use diff::DiffCommand;
pub use export::ExportCommand;

use self::stopped::Absent;

use crate::process::ExitCode;
use crate::targets::Failure;
use crate::{chain, complain, events, exit_code, targets};

/// A container, or a VM, whose files can be reached.
struct Opened {
    files: Files,
    /// As the user calls it.
    word: String,
    /// What is kept of a container.
    entry: Option<Entry>,
    reached: Reached,
}

/// How files are reached.
enum Reached {
    /// The container runs.
    Running(Box<Running>),
    /// It is a VM, whose guest runs the agent.
    Guest(Box<Running>),
    /// It does not: a VM has its root meanwhile, without some of what is mounted in it.
    Stopped(Box<Visit>, Vec<Absent>),
}

/// Which words name something that is of use.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Takes {
    /// Containers, without what is mounted in one that does not run.
    Containers,
    /// Containers with what is mounted in them, and VMs that run.
    VmsToo,
}

/// Calls `act` with the container that `word` means; the exit code.
fn with(word: &str, act: impl FnOnce(&Opened) -> Result<ExitCode, String>) -> ExitCode {
    with_one_of(Takes::Containers, word, act)
}

/// The same where it may be a VM that runs, and with what is mounted in a container that does not.
fn with_vm(word: &str, act: impl FnOnce(&Opened) -> Result<ExitCode, String>) -> ExitCode {
    with_one_of(Takes::VmsToo, word, act)
}

fn with_one_of(takes: Takes, word: &str, act: impl FnOnce(&Opened) -> Result<ExitCode, String>) -> ExitCode {
    let done = Opened::find(takes, word).and_then(|opened| {
        let done = act(&opened);
        opened.close();
        done
    });
    done.unwrap_or_else(|message| {
        complain(&message);
        exit_code::FAILURE.into()
    })
}

impl Opened {
    /// What `word` means. This process has one thread yet.
    ///
    /// # Errors
    ///
    /// A line for the user.
    fn find(takes: Takes, word: &str) -> Result<Self, String> {
        let line = |error: &FilesError| format!("{word}: {}", chain(error));
        let kept = match targets::kept_alone(word) {
            Ok(kept) => Some(kept),
            // A VM without a record may run.
            Err(Failure::Instance(InstanceError::NotFound(_))) if Registry::of_user().find(word).is_ok() => {
                None
            }
            Err(failure) => return Err(targets::message(word, &failure)),
        };
        let Some(kept) = kept.filter(|kept| kept.entry.kind != Kind::Vm) else {
            return match takes {
                Takes::Containers => Err(line(&FilesError::NotAContainer)),
                Takes::VmsToo => Self::of_vm(word),
            };
        };
        let (entry, word) = (Some(kept.entry.clone()), word.to_owned());
        if !kept.is_running {
            let (visit, absent) =
                stopped::visit(&kept, takes == Takes::VmsToo).map_err(|why| format!("{word}: {why}"))?;
            let files = visit.files().map_err(|error| line(&error))?;
            return Ok(Self { files, word, entry, reached: Reached::Stopped(Box::new(visit), absent) });
        }
        let vm = targets::find(&Registry::of_user(), &word);
        let vm = vm.map_err(|failure| targets::message(&word, &failure))?;
        targets::check_guest(&word, &vm)?;
        let files = Files::of(&vm.directory, vm.record.id.as_str()).map_err(|error| line(&error))?;
        Ok(Self { files, word, entry, reached: Reached::Running(Box::new(vm)) })
    }

    /// The VM that `word` means, which has to run.
    fn of_vm(word: &str) -> Result<Self, String> {
        let vm = targets::find(&Registry::of_user(), word);
        let vm = vm.map_err(|failure| targets::message(word, &failure))?;
        targets::check_guest(word, &vm)?;
        let files = Files::of(&vm.directory, vm.record.id.as_str());
        let files = files.map_err(|error| format!("{word}: {}", chain(&error)))?;
        Ok(Self { files, word: word.to_owned(), entry: None, reached: Reached::Guest(Box::new(vm)) })
    }

    /// Notes that this is done to a container.
    fn note(&self, action: &str) {
        if let Some(entry) = &self.entry {
            events::note(entry, action, &[]);
        }
    }

    /// What it is, in a message.
    fn noun(&self) -> &'static str {
        if matches!(self.reached, Reached::Guest(_)) { "VM" } else { "container" }
    }

    /// Ends what was started to reach its files.
    fn close(self) {
        if let Reached::Stopped(visit, _) = self.reached {
            visit.finish();
        }
    }

    /// Refuses a path, in its shortest form, that is in what the container has while it runs only.
    fn check_path(&self, path: &[u8]) -> Result<(), String> {
        use std::os::unix::ffi::OsStrExt;
        let path = std::path::Path::new(std::ffi::OsStr::from_bytes(path));
        let Reached::Stopped(_, absent) = &self.reached else { return Ok(()) };
        match absent.iter().find_map(|absent| absent.refuse(path)) {
            Some(why) => Err(format!("{}: {} {why}", self.word, path.display())),
            None => Ok(()),
        }
    }

    /// The failure in a line for the user.
    fn line(&self, error: &FilesError) -> String {
        let name = &self.word;
        match &self.reached {
            Reached::Running(vm) | Reached::Guest(vm)
                if matches!(error, FilesError::Connection(_)) && targets::is_paused(vm) =>
            {
                targets::paused(name)
            }
            _ => format!("{name}: {}", chain(error)),
        }
    }
}
