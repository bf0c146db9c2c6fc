//! The kernel's arguments.

use std::ffi::CString;

use thiserror::Error;

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
    /// A zero byte or a line break, which would end the arguments early.
    #[error("the kernel's arguments contain a control character: remove it from --append or --cmdline")]
    Control,
}

/// The arguments for the kernel of `config`, at most `max` bytes.
///
/// mvm's own are the console, the root disk, and `panic=-1`, which makes a panic end the VM at once even where
/// the guest has no pvpanic driver. `--append` comes behind them, so that it can overrule them.
///
/// # Errors
///
/// [`CmdlineError`] says how to mend it.
pub fn kernel_arguments(config: &VmConfig, max: usize) -> Result<CString, CmdlineError> {
    let arguments = match &config.cmdline {
        Some(cmdline) => cmdline.clone(),
        None => own_arguments(config).join(" "),
    };
    let mut arguments = arguments.trim().to_owned();
    if let Some(append) = config.append.as_deref().map(str::trim).filter(|append| !append.is_empty()) {
        arguments.push(' ');
        arguments.push_str(append);
    }
    if arguments.contains(|character: char| character.is_control() && character != '\t') {
        return Err(CmdlineError::Control);
    }
    let length = arguments.len();
    if length > max {
        return Err(CmdlineError::TooLong { length, max });
    }
    CString::new(arguments).map_err(|_| CmdlineError::Control)
}

fn own_arguments(config: &VmConfig) -> Vec<&'static str> {
    let mut own = Vec::new();
    if config.console != ConsoleConfig::Off {
        own.push("console=ttyS0");
    }
    own.push("panic=-1");
    if let Some(rootfs) = &config.rootfs {
        own.push("root=/dev/vda");
        own.push(if rootfs.read_only { "ro" } else { "rw" });
    }
    own
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DiskConfig, MemorySize};

    fn config() -> VmConfig {
        VmConfig {
            kernel: "vmlinux".into(),
            initrd: None,
            rootfs: Some("root.ext4".parse::<DiskConfig>().unwrap()),
            disks: Vec::new(),
            nets: Vec::new(),
            cpus: 1,
            memory: MemorySize::from_mib(128),
            append: None,
            cmdline: None,
            console: ConsoleConfig::Stdio,
        }
    }

    fn arguments(config: &VmConfig) -> String {
        kernel_arguments(config, 2047).unwrap().into_string().unwrap()
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
        let error = kernel_arguments(&config, 2047);
        assert_eq!(error, Err(CmdlineError::TooLong { length: 2048, max: 2047 }));
        for bad in ["a\0b", "a\nb"] {
            let config = VmConfig { cmdline: Some(bad.into()), ..config.clone() };
            assert_eq!(kernel_arguments(&config, 2047), Err(CmdlineError::Control));
        }
    }
}
