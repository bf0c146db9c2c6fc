//! This process's standard input and output, connected with a container's.

use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::ManuallyDrop;
use std::net::Shutdown;
use std::os::fd::{FromRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::thread::{Builder, JoinHandle};

/// What is passed on at once.
const CHUNK: usize = 64 << 10;

/// The standard descriptor, which is never closed.
fn standard(fd: RawFd) -> ManuallyDrop<File> {
    // SAFETY: the standard descriptors are open for as long as the process lives, and this never closes one.
    ManuallyDrop::new(unsafe { File::from_raw_fd(fd) })
}

/// Passes on all from `source` to `target`, until either ends.
fn pass_on(mut source: impl Read, mut target: impl Write) -> io::Result<()> {
    let mut bytes = vec![0; CHUNK];
    loop {
        match source.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(count) => target.write_all(bytes.get(..count).unwrap_or_default())?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Passes standard input on until it ends. The thread may outlive the container, while it waits for input.
pub fn pass_input(connection: UnixStream) -> io::Result<()> {
    Builder::new().name("stdin".into()).stack_size(256 << 10).spawn(move || {
        // A container that reads no more, or a terminal that is gone, ends it as well as the end of the input.
        let _ = pass_on(&*standard(libc::STDIN_FILENO), &connection);
        let _ = connection.shutdown(Shutdown::Write);
    })?;
    Ok(())
}

/// Passes what comes on `connection` to standard output or error until it ends.
pub fn pass_output(connection: UnixStream, fd: RawFd) -> io::Result<JoinHandle<io::Result<()>>> {
    let name = if fd == libc::STDOUT_FILENO { "stdout" } else { "stderr" };
    Builder::new().name(name.into()).stack_size(256 << 10).spawn(move || pass_on(&connection, &*standard(fd)))
}
