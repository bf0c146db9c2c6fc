use std::io::{PipeReader, Read, pipe};
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use rustix::pipe::fcntl_setpipe_size;

use super::queue::CAPACITY;
use super::*;
use crate::BusDevice;
use crate::virtio::mmio::MmioTransport;
use crate::virtio::rng::Rng;
use crate::virtio::testing::{memory, wait_readable};

/// A log whose lines go to a pipe that holds a page. The pipe's end stays open as long as the process.
fn piped() -> (PipeReader, Arc<Log>) {
    let (reader, writer) = pipe().unwrap();
    fcntl_setpipe_size(&reader, 4096).unwrap();
    let fd = OwnedFd::from(writer).into_raw_fd();
    // SAFETY: the descriptor is open and never closed.
    (reader, Arc::new(Log::new(unsafe { BorrowedFd::borrow_raw(fd) })))
}

/// What is in the pipe by now, and comes within a moment where it is empty.
fn read_some(reader: &mut PipeReader) -> String {
    let mut bytes = vec![0; 2 * CAPACITY];
    let length = reader.read(&mut bytes).unwrap();
    String::from_utf8(bytes[..length].to_vec()).unwrap()
}

fn with_log(log: &Arc<Log>, level: LevelFilter, act: impl FnOnce()) {
    tracing::subscriber::with_default(LogSubscriber::new(level, log.clone()), act);
}

#[test]
fn lines_have_one_form_and_no_control_characters() {
    let (mut reader, log) = piped();
    with_log(&log, LevelFilter::INFO, || {
        let error = std::io::Error::from_raw_os_error(libc::EIO);
        tracing::warn!(%error, device = "disk 0", sectors = 8, "disk I/O failed");
        tracing::error!("from the guest: \x1b[2J\n");
        tracing::info!(name = "a", "started");
        tracing::debug!("not asked for");
    });
    assert_eq!(
        read_some(&mut reader),
        "mvm: warning: disk I/O failed: Input/output error (os error 5) (device disk 0, sectors 8)\n\
         mvm: from the guest: \\u{1b}[2J\\n\n\
         mvm: info: started (name a)\n"
    );
}

#[test]
fn a_place_that_logs_without_end_is_cut_short_and_others_are_still_heard() {
    let (mut reader, log) = piped();
    with_log(&log, LevelFilter::WARN, || {
        for _ in 0..20_000 {
            tracing::warn!(device = "net 0", "the driver broke a rule");
        }
        tracing::warn!("another place");
        for device in ["net 1", "net 2"] {
            tracing::warn!(device, "the driver broke a rule");
        }
    });
    log.sum_up();
    let text = read_some(&mut reader);
    assert_eq!(text.matches("net 0").count(), 10, "{text}");
    assert!(text.contains("net 1") && text.contains("net 2") && text.contains("another place"), "{text}");
    assert!(text.ends_with("mvm: warning: 19990 more lines like those above were left out\n"), "{text}");
}

#[test]
fn a_virtio_device_is_named_and_has_lines_of_its_own() {
    let (mut reader, log) = piped();
    let devices = ["rng 0", "rng 1"].map(|name| {
        let line = Arc::new(AtomicUsize::new(0));
        MmioTransport::new(Rng::new(), memory(), line).unwrap().with_name(name.to_owned())
    });
    with_log(&log, LevelFilter::WARN, || {
        for device in &devices {
            for _ in 0..50 {
                // Reset, then a driver that sets up a queue of a size that none can have.
                for (register, value) in [
                    (0x70, 0),
                    (0x70, 1),
                    (0x70, 3),
                    (0x24, 1),
                    (0x20, 1),
                    (0x70, 11),
                    (0x38, 3),
                    (0x44, 1),
                    (0x70, 15),
                ] {
                    device.write(register, &u32::to_le_bytes(value));
                }
            }
        }
    });
    let text = read_some(&mut reader);
    for name in ["rng 0", "rng 1"] {
        assert_eq!(text.matches(&format!("(device {name})")).count(), 10, "{text}");
    }
}

#[test]
fn without_a_reader_no_thread_waits_and_the_reader_learns_how_many_lines_it_missed() {
    const LINES: usize = 20_000;
    let (mut reader, log) = piped();
    let writer = Writer::start_for(log.clone()).unwrap();
    // More than the pipe, the thread and the queue hold together.
    let line = format!("{}\n", "x".repeat(99));
    for _ in 0..LINES {
        log.queue.push(&line);
    }
    drop(writer);
    // The thread has not ended, and the reader gets all that there is when it reads at last.
    let (mut text, mut told) = (String::new(), 0);
    while told < LINES {
        wait_readable(reader.as_raw_fd());
        text.push_str(&read_some(&mut reader));
        let whole = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
        let dropped = |line: &str| line.strip_prefix("mvm: warning: ")?.split(' ').next()?.parse().ok();
        told = whole.lines().map(|line| dropped(line).unwrap_or(1)).sum();
    }
    assert_eq!(told, LINES);
    assert!(text.len() <= 3 * CAPACITY, "no more waits than there may: {}", text.len());
}

#[test]
fn the_end_waits_for_a_reader_that_is_merely_slow() {
    let (mut reader, log) = piped();
    let writer = Writer::start_for(log.clone()).unwrap();
    let slow = std::thread::spawn(move || {
        let mut seen = 0;
        while seen < CAPACITY {
            // Slow readers are what is tested.
            std::thread::sleep(Duration::from_millis(1));
            let mut bytes = [0; 4096];
            seen += reader.read(&mut bytes).unwrap();
        }
        seen
    });
    let line = format!("{}\n", "x".repeat(63));
    for _ in 0..CAPACITY / line.len() {
        log.queue.push(&line);
    }
    drop(writer);
    assert_eq!(slow.join().unwrap(), CAPACITY);
}

/// Every `.rs` file below `folder`.
fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

/// The rules hold for whatever is logged through `tracing` or of this module, so nothing else may write to standard
/// error where a guest can be the cause.
#[test]
fn nothing_that_runs_with_a_guest_writes_to_standard_error_but_this_module() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut files = Vec::new();
    for crate_name in ["devices", "vmm", "instance", "container", "cli"] {
        let folder = root.join(crate_name).join("src");
        if folder.exists() {
            sources(&folder, &mut files);
        }
    }
    assert!(files.len() > 100, "the sources were found");
    let mut found = Vec::new();
    for file in files {
        let name = file.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        // What people type to and look at runs in a process of its own, without a guest, as what copies files does, and
        // images are pulled before there is one; a share's tree is made in the process that becomes its back end, once; the
        // units are a test.
        let other = [
            "devices/src/log/",
            "cli/src/attach.rs",
            "cli/src/console.rs",
            "cli/src/files/progress.rs",
            "cli/src/images/",
            "container/src/attach/client.rs",
            "vmm/src/shares/tree.rs",
            "cli/src/logs.rs",
            "cli/src/pod/logs.rs",
            "console/attach.rs",
            "cli/src/units.rs",
        ];
        if other.iter().any(|part| name.contains(part))
            || name.ends_with("tests.rs")
            || name.contains("/tests/")
        {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        for (number, line) in (1..).zip(code.lines()) {
            if ["eprint", "dbg!", "stderr()"].iter().any(|word| line.contains(word)) {
                found.push(format!("{name}:{number}: {}", line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}
