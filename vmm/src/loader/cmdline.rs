//! The kernel's arguments.

use std::borrow::Cow;
use std::ffi::CString;

use devices::virtio::mmio::MMIO_LENGTH;
use thiserror::Error;

use crate::arch::current::layout;
use crate::arch::current::platform::{EARLY_CONSOLE, SERIAL_CONSOLE};
use crate::{ConsoleConfig, VmConfig};

/// Why the kernel can't be given the arguments.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CmdlineError {
    /// Too many bytes.
    #[error(
        "the kernel's arguments have {length} bytes, this kernel takes {max}: shorten --append or --cmdline"
    )]
    TooLong {
        /// Bytes without the terminating zero.
        length: usize,
        /// The most that the kernel takes.
        max: usize,
    },
    /// A zero byte or a line break would end the arguments early; of what is not ASCII, the kernel takes some bytes for
    /// spaces (0xA0, as in `à`).
    #[error("the kernel's arguments contain {0:?}: use printable ASCII only in --append and --cmdline")]
    Character(char),
}

/// The arguments for the kernel of `config`, at most `max` bytes. `visible` says whether its console can be seen by
/// others than `config.console` names.
///
/// mvm's own are the console, the root disk, the shares, and `panic=-1`, which makes a panic end the VM at once even
/// where the guest has no pvpanic driver. `--append` comes behind them, so that it can overrule them.
///
/// # Errors
///
/// [`CmdlineError`] says how to fix it.
pub fn kernel_arguments(config: &VmConfig, visible: bool, max: usize) -> Result<CString, CmdlineError> {
    let arguments = match &config.cmdline {
        Some(cmdline) => cmdline.clone(),
        None => own_arguments(config, visible).join(" "),
    };
    let mut arguments = arguments.trim().to_owned();
    if let Some(append) = config.append.as_deref().map(str::trim).filter(|append| !append.is_empty()) {
        arguments.push(' ');
        arguments.push_str(append);
    }
    let is_plain = |character: char| character.is_ascii_graphic() || matches!(character, ' ' | '\t');
    if let Some(character) = arguments.chars().find(|character| !is_plain(*character)) {
        return Err(CmdlineError::Character(character));
    }
    let length = arguments.len();
    if length > max {
        return Err(CmdlineError::TooLong { length, max });
    }
    CString::new(arguments).map_err(|_| CmdlineError::Character('\0'))
}

fn own_arguments(config: &VmConfig, visible: bool) -> Vec<Cow<'static, str>> {
    let mut own = Vec::new();
    match config.console {
        // The kernel's first words go to the serial port, until the driver of the other console takes over: what
        // was said by then is not said again. A second console= would say everything twice.
        ConsoleConfig::Virtio => {
            own.extend([format!("earlycon={EARLY_CONSOLE}").into(), "console=hvc0".into()])
        }
        // A console that cannot be seen only costs time.
        ConsoleConfig::Off if !visible => {}
        ConsoleConfig::Stdio | ConsoleConfig::Off | ConsoleConfig::File(_) => {
            own.push(format!("console={SERIAL_CONSOLE}").into())
        }
    }
    own.push("panic=-1".into());
    if let Some(rootfs) = &config.rootfs {
        own.push("root=/dev/vda".into());
        own.push(if rootfs.read_only { "ro" } else { "rw" }.into());
    }
    if acpi_is_off(config) {
        own.extend(virtio_mmio_arguments(config.devices().count()));
    }
    // A kernel leaves them alone; the guest's init mounts each of these tags there.
    let places = config.share_tags().filter(|tag| tag.as_str().starts_with('/'));
    own.extend(places.map(|tag| format!("mvm.share={tag}").into()));
    own
}

/// Whether the kernel is told not to use ACPI, by which it would find its devices.
fn acpi_is_off(config: &VmConfig) -> bool {
    config.append.iter().flat_map(|append| append.split_whitespace()).any(|argument| argument == "acpi=off")
}

/// Where the first `count` virtio devices are, for kernels with `CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES`.
fn virtio_mmio_arguments(count: usize) -> impl Iterator<Item = Cow<'static, str>> {
    let places = (layout::VIRTIO_MMIO..).step_by(MMIO_STEP).zip(layout::VIRTIO_GSIS).take(count);
    places.map(|(address, gsi)| format!("virtio_mmio.device=4K@{address:#x}:{gsi}").into())
}

/// From one virtio device's registers to the next one's.
const MMIO_STEP: usize = 0x1000;
const _: () = assert!(MMIO_STEP as u64 == MMIO_LENGTH);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DiskConfig;

    fn config() -> VmConfig {
        VmConfig { rootfs: Some("root.ext4".parse::<DiskConfig>().unwrap()), ..VmConfig::new("vmlinux") }
    }

    fn arguments(config: &VmConfig) -> String {
        kernel_arguments(config, false, 2047).unwrap().into_string().unwrap()
    }

    #[test]
    fn own_arguments_name_the_console_and_the_root_disk() {
        assert_eq!(arguments(&config()), "console=ttyS0 panic=-1 root=/dev/vda rw");
        let config = VmConfig {
            rootfs: Some("root.ext4,readonly".parse().unwrap()),
            console: ConsoleConfig::Off,
            ..config()
        };
        assert_eq!(arguments(&config), "panic=-1 root=/dev/vda ro");
        let visible = kernel_arguments(&config, true, 2047).unwrap().into_string().unwrap();
        assert_eq!(visible, "console=ttyS0 panic=-1 root=/dev/vda ro", "others can attach to it");
    }

    #[test]
    fn a_virtio_console_is_the_only_one_once_its_driver_is_there() {
        let config = VmConfig { console: ConsoleConfig::Virtio, rootfs: None, ..config() };
        assert_eq!(arguments(&config), "earlycon=uart8250,io,0x3f8 console=hvc0 panic=-1");
    }

    #[test]
    fn shares_that_have_a_place_are_named() {
        let config = VmConfig {
            rootfs: None,
            shares: vec!["src:/work".parse().unwrap(), "x:tag".parse().unwrap()],
            vhost_user: vec!["fs=socket,tag=/data".parse().unwrap()],
            ..config()
        };
        assert_eq!(arguments(&config), "console=ttyS0 panic=-1 mvm.share=/work mvm.share=/data");
    }

    #[test]
    fn a_kernel_without_acpi_is_told_where_its_devices_are() {
        let config = VmConfig { append: Some("quiet acpi=off".into()), ..config() };
        assert_eq!(
            arguments(&config),
            "console=ttyS0 panic=-1 root=/dev/vda rw virtio_mmio.device=4K@0xd0000000:5 \
             virtio_mmio.device=4K@0xd0001000:6 quiet acpi=off"
        );
    }

    #[test]
    fn append_comes_last_and_cmdline_replaces_all_own_ones() {
        let config = VmConfig { append: Some(" quiet ".into()), rootfs: None, ..config() };
        assert_eq!(arguments(&config), "console=ttyS0 panic=-1 quiet");
        let config = VmConfig { cmdline: Some("init=/x".into()), ..config };
        assert_eq!(arguments(&config), "init=/x quiet");
    }

    #[test]
    fn what_the_kernel_would_cut_off_is_refused() {
        let config = VmConfig { cmdline: Some("x".repeat(2048)), ..config() };
        let error = kernel_arguments(&config, false, 2047);
        assert_eq!(error, Err(CmdlineError::TooLong { length: 2048, max: 2047 }));
        for bad in ['\0', '\n', '\u{7f}', 'à', '\u{a0}'] {
            let words = Some(format!("a{bad}b"));
            let config = VmConfig { cmdline: words.clone(), ..config.clone() };
            assert_eq!(kernel_arguments(&config, false, 2047), Err(CmdlineError::Character(bad)));
            let config = VmConfig { cmdline: None, append: words, ..config };
            assert_eq!(kernel_arguments(&config, false, 2047), Err(CmdlineError::Character(bad)));
        }
    }
}
