//! Waiting for a guest in the background to say that it is ready.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use clap::Args;
use vmm::{AwaitedText, ExitReason, TimeLimit, VmProcess};

use crate::background::{Report, SharedReporter};
use crate::exit_code;

/// How long a guest has without `--ready-timeout`.
const LIMIT: TimeLimit = TimeLimit::from_secs(300);

/// When a VM in the background is ready.
#[derive(Args)]
pub struct ReadyArguments {
    /// Return when the VM's console has printed this, with --detach
    ///
    /// 1 to 256 bytes. Where the VM ends before, the command fails with its exit code, or with 1 where that is 0.
    #[arg(long, value_name = "TEXT", requires = "detach", value_parser = text, hide_short_help = true)]
    ready: Option<Text>,

    /// How long the VM has for --ready [default: 5m]
    ///
    /// Then it is ended, and the command fails with 124.
    #[arg(long, value_name = "TIME", requires = "ready", hide_short_help = true)]
    ready_timeout: Option<TimeLimit>,
}

/// A text that is waited for.
#[derive(Clone)]
struct Text(Vec<u8>);

fn text(text: &str) -> Result<Text, String> {
    match text.len() {
        1..=AwaitedText::MAX => Ok(Text(OsString::from(text).into_vec())),
        0 => Err("the text is empty".into()),
        length => Err(format!("the text has {length} bytes: use 1 to {}", AwaitedText::MAX)),
    }
}

impl ReadyArguments {
    /// What is waited for, if anything is.
    pub fn into_awaited(self) -> Option<Awaited> {
        let limit = self.ready_timeout.unwrap_or(LIMIT);
        self.ready.map(|text| Awaited { text: text.0, limit, is_ready: Arc::default() })
    }
}

/// What a guest in the background has to print, and how long it has.
pub struct Awaited {
    text: Vec<u8>,
    limit: TimeLimit,
    /// Whether it is ready, once that is decided.
    is_ready: Arc<OnceLock<bool>>,
}

impl Awaited {
    /// The text.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// Has `reporter` report `started` when what this returns is called, as the text was printed. Where the time is over
    /// before, the `vm` is ended.
    ///
    /// # Errors
    ///
    /// Those of starting a thread.
    pub fn watch(
        &self,
        reporter: SharedReporter,
        started: Report,
        vm: Arc<VmProcess>,
    ) -> io::Result<impl Fn() + use<>> {
        let (sender, printed) = mpsc::channel();
        let (limit, is_ready) = (self.limit.duration(), self.is_ready.clone());
        std::thread::Builder::new().name("ready".into()).stack_size(64 << 10).spawn(move || {
            wait(&printed, limit, &is_ready, &vm);
        })?;
        let is_ready = self.is_ready.clone();
        let call = move || {
            if is_ready.set(true).is_ok() {
                reporter.report(&started);
                // Where the thread has ended the VM is about to end.
                let _ = sender.send(());
            }
        };
        Ok(call)
    }

    /// What there is to say where the VM has ended for `reason`, with `code`, before it was ready: an exit code and a
    /// line.
    pub fn failure(&self, id: &str, reason: &str, code: u8) -> Option<(u8, String)> {
        if self.is_ready.get() == Some(&true) {
            return None;
        }
        let text = String::from_utf8_lossy(&self.text).into_owned();
        let message = if self.is_ready.get().is_some() {
            format!("VM {id} did not print {text:?} within {}, and was ended", self.limit)
        } else {
            format!("VM {id} ended before it printed {text:?}: {reason}")
        };
        Some((if code == exit_code::SUCCESS { exit_code::FAILURE } else { code }, message))
    }
}

/// Waits for the text or the VM's end, which close `printed`.
fn wait(printed: &mpsc::Receiver<()>, limit: Duration, is_ready: &OnceLock<bool>, vm: &Arc<VmProcess>) {
    let is_late = printed.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
    if is_late && is_ready.set(false).is_ok() {
        vm.end_for(ExitReason::TimedOut);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_bytes_of_a_bounded_length() {
        assert_eq!(text("é\n").ok().map(|text| text.0), Some("é\n".as_bytes().to_vec()));
        assert!(text(&"x".repeat(256)).is_ok());
        let error = |given: &str| text(given).err().unwrap_or_default();
        assert_eq!(error(""), "the text is empty");
        assert_eq!(error(&"x".repeat(257)), "the text has 257 bytes: use 1 to 256");
    }

    #[test]
    fn a_vm_that_ends_before_it_is_ready_is_a_failure_whatever_its_code() {
        let awaited = |is_ready: Option<bool>| {
            let is_ready = Arc::new(is_ready.map_or_else(OnceLock::new, OnceLock::from));
            Awaited { text: b"login:".to_vec(), limit: TimeLimit::from_secs(90), is_ready }
        };
        let (code, line) = awaited(None).failure("0a", "off", 0).unwrap();
        assert_eq!(code, 1);
        assert!(line.starts_with("VM 0a ended before it printed \"login:\": "), "{line}");
        assert_eq!(awaited(None).failure("0a", "7", 7).unwrap().0, 7);
        let late = awaited(Some(false)).failure("0a", "late", 124);
        assert_eq!(late, Some((124, "VM 0a did not print \"login:\" within 90s, and was ended".into())));
        assert_eq!(awaited(Some(true)).failure("0a", "off", 0), None);
    }
}
