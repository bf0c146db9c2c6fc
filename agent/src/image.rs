//! An image's files as the root of a VM (`mvm boot --rootfs image:…`): mounts the image with what takes its changes
//! over it, starts the service for the host's commands, and becomes the image's own init.
//!
//! What is in the image is used by nothing here but by the kernel. Where it has no init, a shell runs on the console.

use std::convert::Infallible;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::{fs, io};

use agent_protocol::{Container, Writable};
use rustix::mount::mount_move;
use rustix::process::{WaitOptions, wait};

use crate::child;
use crate::error::{During, Result, failure};
use crate::mounts::{self, Kind};
use crate::service;
use crate::system::{self, RUN};

/// The kernel's arguments that say where it is.
const IMAGE: &str = "mvm.image=";
/// Where its changes go: `memory`, `disk:DEVICE`, or `scratch:DEVICE` for a disk of which nothing is needed later.
const CHANGES: &str = "mvm.changes=";
/// The init, in place of those that are looked for.
const INIT: &str = "mvm.init=";

/// Those that Linux looks for, and systemd where its package for an init is missing.
const INITS: [&str; 5] =
    ["/sbin/init", "/etc/init", "/bin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd"];

/// The VMM's port for the exit code, and the byte that follows it (`devices::legacy`).
const EXIT_CODE: u64 = 0x521;

/// What the kernel's arguments ask for.
#[derive(Debug, PartialEq, Eq)]
pub struct Wanted {
    image: String,
    writable: Writable,
    init: Option<String>,
}

impl Wanted {
    /// Reads the kernel's arguments; `None` where they name no image.
    pub fn of(arguments: &str) -> Option<Result<Self>> {
        let value =
            |name: &str| arguments.split_whitespace().filter_map(|word| word.strip_prefix(name)).next_back();
        let image = value(IMAGE)?.to_owned();
        let init = value(INIT).map(ToOwned::to_owned);
        let changes = value(CHANGES).unwrap_or("memory");
        let writable = match changes.split_once(':') {
            None if changes == "memory" => Writable::Memory(None),
            Some(("disk", device)) => Writable::Disk(device.to_owned()),
            Some(("scratch", device)) => Writable::Scratch(device.to_owned()),
            _ => {
                return Some(Err(failure(format!(
                    "{CHANGES}{changes}: use memory, disk:DEVICE or scratch:DEVICE"
                ))));
            }
        };
        Some(Ok(Self { image, writable, init }))
    }

    /// Makes the image the root, and becomes its init.
    fn become_init(self, ending: &Ending) -> Result<Infallible> {
        let Self { image, writable, init } = self;
        let container =
            Container { id: "root".into(), image, writable, all_devices: true, ..Container::default() };
        let root = mounts::mount_root(&container, &format!("{RUN}/root"))?;
        // By /proc a place is found, which is moved last.
        for place in ["/dev", "/sys", "/proc"] {
            let target = root.target(place, Kind::Directory)?;
            mount_move(place, mounts::path_of(target.as_fd()))
                .during(format!("move {place} into the image"))?;
        }
        root.pivot()?;
        drop(root);
        start_service()?;
        child::reset();
        let inits: Vec<&str> = init.as_deref().map_or_else(|| INITS.to_vec(), |init| vec![init]);
        for path in inits {
            // It returns where that fails.
            let error = Command::new(path).args(std::env::args_os().skip(1)).exec();
            if error.kind() != io::ErrorKind::NotFound || init.is_some() {
                eprintln!("agent: cannot execute {path}: {error}");
            }
        }
        run_shell(ending)
    }
}

/// Starts the VM from its image, and ends it where it cannot.
pub fn run(wanted: Result<Wanted>) -> ! {
    let ending = Ending::prepare();
    let Err(failure) = wanted.and_then(|wanted| wanted.become_init(&ending));
    eprintln!("mvm: the VM cannot start from its image: {}", failure.message);
    ending.end(1)
}

/// Runs the service for the host's commands beside the init.
fn start_service() -> Result<()> {
    // SAFETY: this process has one thread, so that no lock is held by another one in the copy.
    match unsafe { libc::fork() } {
        0 => {
            let _ = rustix::process::setsid();
            let _ = rustix::thread::set_name(c"mvm-agent");
            let _ = system::set("/proc/self/oom_score_adj", "-900");
            let code = service::run(&["--service".to_owned()]);
            // SAFETY: it ends the process, without what the copy of the init would do at its end.
            unsafe { libc::_exit(i32::from(code != std::process::ExitCode::SUCCESS)) }
        }
        pid if pid > 0 => Ok(()),
        _ => Err(io::Error::last_os_error()).during("make a process"),
    }
}

/// Is the init of an image that has none, until a shell on the console ends or the power button is pressed.
fn run_shell(ending: &Ending) -> ! {
    eprintln!(
        "\nmvm: the image has no init ({}): a shell runs in place of it, and the VM powers off when that ends\n",
        INITS.join(", ")
    );
    let shell = match shell().and_then(|mut shell| shell.spawn()) {
        Ok(shell) => shell,
        Err(error) => {
            eprintln!("mvm: the image has no /bin/sh either ({error}): `mvm run` runs its own command");
            ending.end(127)
        }
    };
    let button = watch_button().ok();
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) => {
                let is = |child: &Child| {
                    u32::try_from(pid.as_raw_nonzero().get()).is_ok_and(|pid| pid == child.id())
                };
                let code = status.exit_status().or_else(|| Some(128 + status.terminating_signal()?));
                if is(&shell) {
                    ending.end(u8::try_from(code.unwrap_or(0)).unwrap_or(u8::MAX))
                }
                if button == Some(pid) && code == Some(0) {
                    ending.end(0)
                }
            }
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => ending.end(1),
        }
    }
}

/// A shell that has the console as its terminal.
fn shell() -> io::Result<Command> {
    // That which this process has is of the root that the kernel began with, where programs do not find its name.
    let console = fs::OpenOptions::new().read(true).write(true).open("/dev/console")?;
    let mut shell = Command::new("/bin/sh");
    shell.stdin(console.try_clone()?).stdout(console.try_clone()?).stderr(console);
    shell.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/root");
    let take = || {
        rustix::process::setsid()?;
        // Without a console it has no terminal, and reads the end of its input.
        let _ = rustix::process::ioctl_tiocsctty(io::stdin());
        Ok(())
    };
    // SAFETY: it makes system calls alone.
    unsafe { shell.pre_exec(take) };
    Ok(shell)
}

/// A process that ends with 0 when the power button is pressed.
fn watch_button() -> Result<rustix::process::Pid> {
    // SAFETY: as above.
    match unsafe { libc::fork() } {
        0 => {
            let mut event = [0; 24];
            let pressed = fs::File::open("/dev/input/event0")
                .and_then(|mut button| io::Read::read_exact(&mut button, &mut event));
            // SAFETY: it ends the process, without what the copy of the init would do at its end.
            unsafe { libc::_exit(i32::from(pressed.is_err())) }
        }
        pid => rustix::process::Pid::from_raw(pid).ok_or_else(|| failure("cannot make a process".into())),
    }
}

/// What the VM ends with.
struct Ending(Option<fs::File>);

impl Ending {
    /// Opens the ports of the processor, which are not found any more once /dev is in the image.
    fn prepare() -> Self {
        Self(fs::OpenOptions::new().write(true).open("/dev/port").ok())
    }

    /// Ends the VM with an exit code, which is 0 on a kernel without ports for programs. What was written to the
    /// console comes before.
    fn end(&self, code: u8) -> ! {
        let _ = rustix::termios::tcdrain(io::stderr());
        let _ = self.0.as_ref().map(|port| port.write_at(&[code], EXIT_CODE));
        system::power_off()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn wanted(writable: Writable, init: Option<&str>) -> Wanted {
        Wanted { image: "/dev/vdb".into(), writable, init: init.map(ToOwned::to_owned) }
    }

    #[rstest]
    #[case("quiet mvm.image=/dev/vdb", wanted(Writable::Memory(None), None))]
    #[case("mvm.image=/dev/vdx mvm.image=/dev/vdb mvm.changes=memory", wanted(Writable::Memory(None), None))]
    #[case("mvm.image=/dev/vdb mvm.changes=disk:/dev/vdc mvm.init=/bin/x", wanted(Writable::Disk("/dev/vdc".into()), Some("/bin/x")))]
    #[case("mvm.changes=scratch:/dev/vdd\tmvm.image=/dev/vdb", wanted(Writable::Scratch("/dev/vdd".into()), None))]
    fn arguments_say_what_the_root_is(#[case] arguments: &str, #[case] expected: Wanted) {
        assert_eq!(Wanted::of(arguments).unwrap().unwrap(), expected);
    }

    #[test]
    fn other_arguments_say_nothing() {
        assert_eq!(Wanted::of("console=ttyS0 root=/dev/vda xmvm.image=/dev/vdb"), None);
        for changes in ["", "disk", "tape:/dev/x"] {
            let failure =
                Wanted::of(&format!("mvm.image=/dev/vdb mvm.changes={changes}")).unwrap().unwrap_err();
            assert!(
                failure.message.contains("use memory, disk:DEVICE or scratch:DEVICE"),
                "{}",
                failure.message
            );
        }
    }
}
