//! `mvm resize`.

use clap::Args;
use instance::Registry;
use instance::api::{Drive, DriveUpdate};
use vmm::MemorySize;

use crate::process::ExitCode;
use crate::table::bytes;
use crate::targets::{self, Failure};
use crate::{exit_code, print};

const EXAMPLES: &str = "\
Examples:
  mvm resize web vdb 20G         make the second disk 20 GiB, and tell the guest
  mvm resize web data            tell the guest the size that the disk has
  mvm resize web vdb 5G --shrink make it smaller; what is beyond 5 GiB is lost

The guest's file system has to be resized in the guest, for example by resize2fs.";

/// Arguments of `mvm resize`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct ResizeCommand {
    /// ID, beginning of an ID, or name of the VM
    vm: String,

    /// Name of the disk in the guest, such as vda, or the ID that it was given with id=
    disk: String,

    /// New size, such as 20G; without it, the size that the file or block device has
    #[arg(value_parser = size)]
    size: Option<u64>,

    /// Allow the disk to become smaller
    ///
    /// What is beyond the new size is lost.
    #[arg(long)]
    shrink: bool,
}

impl ResizeCommand {
    /// Resizes the disk, and prints its size.
    pub fn run(self) -> ExitCode {
        match self.resize() {
            Ok(drive) => {
                let line = format!("{}: {}\n", drive.drive_id, bytes(drive.size_bytes));
                print(line.as_bytes(), exit_code::SUCCESS)
            }
            Err(failure) => targets::complain_of(&self.vm, &failure).into(),
        }
    }

    fn resize(&self) -> Result<Drive, Failure> {
        let mut client = targets::client(&targets::find(&Registry::of_user(), &self.vm)?)?;
        let path = format!("/drives/{}", self.disk);
        let update = DriveUpdate { drive_id: self.disk.clone(), size_bytes: self.size, shrink: self.shrink };
        client.send("PATCH", &path, &update)?;
        Ok(client.get(&path)?)
    }
}

/// Reads a size in bytes.
fn size(text: &str) -> Result<u64, String> {
    let size = text.parse::<MemorySize>().map_err(|error| error.to_string())?.bytes();
    if size > 0 && size.is_multiple_of(512) {
        Ok(size)
    } else {
        Err(format!(
            "the size of a disk is a multiple of 512 bytes: {text} is {size} bytes; use a unit, as in 20G"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_whole_sectors() {
        assert_eq!(["20G", "1M", "512"].map(size), [20 << 30, 1 << 20, 512].map(Ok));
        for text in ["0", "1", "513"] {
            let error = size(text).unwrap_err();
            assert!(error.contains("a multiple of 512 bytes"), "{error}");
        }
        assert!(size("large").unwrap_err().contains("invalid size"));
    }
}
