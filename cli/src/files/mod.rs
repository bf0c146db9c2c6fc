//! Files of containers: `mvm cp`, `mvm diff`, `mvm export` and `mvm commit`.

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
use crate::{chain, complain, exit_code, targets};

/// A container whose files can be reached.
struct Opened {
    files: Files,
    /// As the user calls it.
    word: String,
    /// What is kept of it.
    entry: Entry,
    reached: Reached,
}

/// How files are reached.
enum Reached {
    /// The container runs.
    Running(Box<Running>),
    /// It does not: a VM has its root meanwhile, without some of what is mounted in it.
    Stopped(Box<Visit>, Vec<Absent>),
}

/// Calls `act` with the container that `word` means; the exit code.
fn with(word: &str, act: impl FnOnce(&Opened) -> Result<ExitCode, String>) -> ExitCode {
    with_found(Opened::find(word, false), act)
}

/// The same, with what is mounted in it where it does not run.
fn with_mounts(word: &str, act: impl FnOnce(&Opened) -> Result<ExitCode, String>) -> ExitCode {
    with_found(Opened::find(word, true), act)
}

fn with_found(
    found: Result<Opened, String>,
    act: impl FnOnce(&Opened) -> Result<ExitCode, String>,
) -> ExitCode {
    let done = found.and_then(|opened| {
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
    /// The container that `word` means; one that does not run, `with_mounts` of its own. This process has one thread yet.
    ///
    /// # Errors
    ///
    /// A line for the user.
    fn find(word: &str, with_mounts: bool) -> Result<Self, String> {
        let line = |error: &FilesError| format!("{word}: {}", chain(error));
        let kept = match targets::kept_alone(word) {
            Ok(kept) => kept,
            // A VM without a record may run.
            Err(Failure::Instance(InstanceError::NotFound(_))) if Registry::of_user().find(word).is_ok() => {
                return Err(line(&FilesError::NotAContainer));
            }
            Err(failure) => return Err(targets::message(word, &failure)),
        };
        if kept.entry.kind == Kind::Vm {
            return Err(line(&FilesError::NotAContainer));
        }
        let (entry, word) = (kept.entry.clone(), word.to_owned());
        if !kept.is_running {
            let (visit, absent) =
                stopped::visit(&kept, with_mounts).map_err(|why| format!("{word}: {why}"))?;
            let files = visit.files().map_err(|error| line(&error))?;
            return Ok(Self { files, word, entry, reached: Reached::Stopped(Box::new(visit), absent) });
        }
        let vm = targets::find(&Registry::of_user(), &word);
        let vm = vm.map_err(|failure| targets::message(&word, &failure))?;
        let files = Files::of(&vm.directory, vm.record.id.as_str()).map_err(|error| line(&error))?;
        Ok(Self { files, word, entry, reached: Reached::Running(Box::new(vm)) })
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
            Reached::Running(vm) if matches!(error, FilesError::Connection(_)) && targets::is_paused(vm) => {
                format!("{name}: it is paused: `mvm resume {name}`")
            }
            _ => format!("{name}: {}", chain(error)),
        }
    }
}
