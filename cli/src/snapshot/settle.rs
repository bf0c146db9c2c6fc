//! Files that a VM's process has written: nothing that it still has open may change what was saved.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::copies::copy;

/// What a VM's process has written.
pub struct Settled {
    /// It, which no other process can write to any more.
    pub file: File,
    /// It is a copy, in the file that was made for that.
    pub is_copy: bool,
}

/// Makes sure that what a VM's process has written to `file`, which was given to it, stays as it is. One that was not
/// taken over has closed it by now; where that can't be proven, what is in it is copied to the file that `make` makes.
///
/// # Errors
///
/// It can't be copied; on one line.
pub fn settle(file: File, make: impl FnOnce() -> Result<File, String>) -> Result<Settled, String> {
    let failed = |error: io::Error| format!("cannot read what was saved: {error}");
    // The permission to write that this process has counts as well.
    let read_only = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(failed)?;
    drop(file);
    if is_written_by_none(&read_only) {
        return Ok(Settled { file: read_only, is_copy: false });
    }
    let own = make()?;
    let length = read_only.metadata().map_err(failed)?.len();
    let copied = copy(&read_only, &own, length);
    copied.map_err(|error| format!("cannot copy what was saved: {error}"))?;
    Ok(Settled { file: own, is_copy: true })
}

/// Whether no process has `file` open or mapped to be written to, by which alone those can write to it that may open
/// nothing. Not all file systems say it.
fn is_written_by_none(file: &File) -> bool {
    // SAFETY: the call takes numbers.
    let lease = |kind: libc::c_int| unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) };
    // Linux gives no lease of a file that is open for writing (fcntl(2)).
    let is_leased = lease(libc::F_RDLCK) == 0;
    if is_leased {
        lease(libc::F_UNLCK);
    }
    is_leased
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::fs::{FileExt, MetadataExt};

    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

    use super::*;

    fn make() -> Result<File, String> {
        tempfile::tempfile().map_err(|error| error.to_string())
    }

    fn written() -> File {
        let mut file = make().unwrap();
        file.write_all(b"saved").unwrap();
        file
    }

    fn content(file: &File) -> String {
        let mut bytes = vec![0; 5];
        file.read_exact_at(&mut bytes, 0).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn what_a_process_has_closed_is_taken_as_it_is() {
        let file = written();
        let number = file.metadata().unwrap().ino();
        let settled = settle(file, make).unwrap();
        if settled.is_copy {
            return eprintln!("skipped: the file system has no leases");
        }
        assert_eq!(settled.file.metadata().unwrap().ino(), number);
        let mut all = String::new();
        (&settled.file).read_to_string(&mut all).unwrap();
        assert_eq!(all, "saved");
        assert!(settled.file.write_at(b"x", 0).is_err());
        // No lease is left.
        File::options().write(true).open(format!("/proc/self/fd/{}", settled.file.as_raw_fd())).unwrap();
    }

    #[test]
    fn what_a_process_still_has_open_is_copied() {
        let file = written();
        let kept = file.try_clone().unwrap();
        let settled = settle(file, make).unwrap();
        kept.write_at(b"later", 0).unwrap();
        assert!(settled.is_copy);
        assert_eq!((content(&settled.file), content(&kept)), ("saved".into(), "later".into()));
    }

    #[test]
    fn what_a_process_still_has_mapped_is_copied() {
        let file = written();
        let (none, both) = (std::ptr::null_mut(), ProtFlags::READ | ProtFlags::WRITE);
        // SAFETY: the mapping is new, and nothing else uses it.
        let mapped = unsafe { mmap(none, 5, both, MapFlags::SHARED, file.as_fd(), 0) }.unwrap();
        let settled = settle(file, make).unwrap();
        // SAFETY: it is mapped, and five bytes long.
        unsafe { mapped.cast::<[u8; 5]>().write(*b"later") };
        assert!(settled.is_copy);
        assert_eq!(content(&settled.file), "saved");
        // SAFETY: nothing uses it any more.
        unsafe { munmap(mapped, 5) }.unwrap();
    }
}
