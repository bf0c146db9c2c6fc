//! A file system whose files cannot be read: each read waits until the file system is gone, as on a network file system
//! without its server (FUSE, linux/fuse.h).

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{PipeWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};

/// The size of each file.
const SIZE: u64 = 1 << 20;
const ROOT: u64 = 1;

/// The file system; any name in it is a file. It is gone when this is dropped, and every read fails.
pub(crate) struct StalledFiles {
    path: PathBuf,
    reads: Arc<AtomicUsize>,
    end: Option<PipeWriter>,
    server: Option<JoinHandle<()>>,
}

impl StalledFiles {
    /// Mounts it at `path`, which is made; `None`, with the reason printed, where this user or host cannot.
    pub(crate) fn mount(path: &Path) -> Option<Self> {
        std::fs::create_dir(path).unwrap();
        let device = match OpenOptions::new().read(true).write(true).open("/dev/fuse") {
            Ok(device) => device,
            Err(error) => {
                skip(&error);
                return None;
            }
        };
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let (target, options) =
            (CString::new(path.as_os_str().as_bytes()).unwrap(), CString::new(options).unwrap());
        // SAFETY: all arguments are strings of C's.
        let mounted = unsafe {
            libc::mount(c"stalled".as_ptr(), target.as_ptr(), c"fuse".as_ptr(), 0, options.as_ptr().cast())
        };
        if mounted != 0 {
            skip(&std::io::Error::last_os_error());
            return None;
        }
        let reads = Arc::new(AtomicUsize::new(0));
        let (ended, end) = std::io::pipe().unwrap();
        let counter = reads.clone();
        let server = std::thread::spawn(move || {
            let is_over = || {
                let mut fds = [PollFd::new(&ended, PollFlags::IN), PollFd::new(&device, PollFlags::IN)];
                poll(&mut fds, None).unwrap();
                !fds[0].revents().is_empty()
            };
            while !is_over() {
                serve(&device, &counter);
            }
        });
        Some(Self { path: path.to_owned(), reads, end: Some(end), server: Some(server) })
    }

    /// The file `name`.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// How many reads wait.
    pub(crate) fn reads(&self) -> usize {
        self.reads.load(Ordering::SeqCst)
    }
}

impl Drop for StalledFiles {
    fn drop(&mut self) {
        drop(self.end.take());
        // It closes the device, which aborts the reads.
        let _ = self.server.take().unwrap().join();
        let target = CString::new(self.path.as_os_str().as_bytes()).unwrap();
        // SAFETY: the argument is a string of C's.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    }
}

fn skip(error: &std::io::Error) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("a test");
    // Past the test harness, which would keep it to itself.
    let _ = writeln!(std::io::stderr(), "skipped {name}: no FUSE file system can be mounted here: {error}");
}

/// Answers one request of the kernel's, except reads.
fn serve(mut device: &File, reads: &AtomicUsize) {
    const LOOKUP: u32 = 1;
    const GETATTR: u32 = 3;
    let mut request = vec![0; 1 << 20];
    let Ok(length) = device.read(&mut request) else { return };
    let word = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().unwrap());
    let unique = &request[8..16];
    let node = u64::from_le_bytes(request[16..24].try_into().unwrap());
    let body = match word(4) {
        LOOKUP => {
            // The node's number is the name's last character.
            let node = u64::from(request[length - 2]);
            let mut body = numbers(&[node, 0, 3600, 3600, 0]);
            body.extend(attributes(node));
            Ok(body)
        }
        GETATTR => {
            let mut body = numbers(&[3600, 0]);
            body.extend(attributes(node));
            Ok(body)
        }
        // OPEN: no handle, no flags.
        14 => Ok(numbers(&[0, 0])),
        // INIT: version 7.31, no read-ahead, FUSE_ASYNC_READ, 16 requests in the background, writes of 4 KiB.
        26 => {
            let mut body = Vec::new();
            for word in [7, 31, 0, 1, 16 | 12 << 16, 4096, 1, 1] {
                body.extend(u32::to_le_bytes(word));
            }
            body.resize(64, 0);
            Ok(body)
        }
        // READ
        15 => {
            reads.fetch_add(1, Ordering::SeqCst);
            return;
        }
        // FORGET, INTERRUPT and BATCH_FORGET have no answer.
        2 | 36 | 42 => return,
        // RELEASE, FLUSH
        18 | 25 => Ok(Vec::new()),
        _ => Err(libc::ENOSYS),
    };
    let (error, body) = body.map_or_else(|error| (-error, Vec::new()), |body| (0, body));
    let mut answer = u32::try_from(16 + body.len()).unwrap().to_le_bytes().to_vec();
    answer.extend(error.to_le_bytes());
    answer.extend(unique);
    answer.extend(body);
    // The one who asked may have gone.
    let _ = device.write(&answer);
}

fn numbers(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// `struct fuse_attr` of a directory or a file that everybody may read and write.
fn attributes(node: u64) -> Vec<u8> {
    let mode = if node == ROOT { 0o40_777 } else { 0o100_666 };
    let mut bytes = numbers(&[node, SIZE, SIZE / 512, 0, 0, 0]);
    for word in [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0] {
        bytes.extend(u32::to_le_bytes(word));
    }
    bytes
}
