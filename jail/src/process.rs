//! What holds for a process on any host: no new privileges, no dumps, limits.

use std::io;

use rustix::process::{Resource, Rlimit, setrlimit};

/// No program that this process executes gets rights that it lacks.
pub(crate) fn set_no_new_privs() -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    Ok(())
}

/// No core dump, and nobody but root looks into the memory of this process.
pub(crate) fn forbid_dumps() -> io::Result<()> {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, none)?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// At most so many open files, or as many as it may have now, and so many bytes of private memory that can be written
/// to. Returns the number of files.
pub(crate) fn limit(files: Option<u64>, data: Option<u64>) -> io::Result<u64> {
    let exact = |value| Rlimit { current: Some(value), maximum: Some(value) };
    // A limit that is lower already stays.
    let before = rustix::process::getrlimit(Resource::Nofile);
    let files = files.or(before.current).unwrap_or(u64::MAX).min(before.maximum.unwrap_or(u64::MAX));
    if before != exact(files) {
        setrlimit(Resource::Nofile, exact(files))?;
    }
    if let Some(data) = data {
        let data = rustix::process::getrlimit(Resource::Data).maximum.map_or(data, |most| most.min(data));
        setrlimit(Resource::Data, exact(data))?;
    }
    Ok(files)
}
