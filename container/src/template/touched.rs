//! Which pages of a template's memory a VM uses as soon as it goes on: one goes on from it once, and is looked at.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Instant;

use agent_protocol::{Reply, Request};
use instance::VmId;
use instance::keeper::Tie;
use vmm::{Disk, FromVm, ImageFormat, SavedVm, Snapshot, Touched, VmProcess};

use super::awake::awake;
use super::make::Making;
use super::root::Root;
use super::{MAX_STATE, MEMORY, STATE, Shape, TemplateError, host, read};
use crate::assets::Assets;
use crate::changes;
use crate::connection::{Connection, ConnectionError};
use crate::image::ImageConfig;
use crate::machine::VSOCK;
use crate::mounts::Prepared;
use crate::options::{RunOptions, Storage};
use crate::pod::open_disk;
use crate::run::RunError;
use crate::session::{START, Said, SessionError, put};
use crate::spec::{container, filters, storage};

const PAGE: u64 = 4096;
/// The most bytes of /proc/PID/maps, which the process has as many of as it maps.
const MAX_MAPS: u64 = 1 << 20;
/// Of an entry of /proc/PID/pagemap: the page is there, and it is the file's and not a copy.
const IS_PRESENT: u64 = 1 << 63;
const IS_FILES: u64 = 1 << 61;

/// The pages that a VM uses of the template in `directory`, which has no manifest yet, until a container has run in it;
/// in that of a pod, until its agent is awake. Of an image, whose `root` is mounted in it, nothing is executed. This
/// process has one thread.
pub(super) fn look(
    directory: &Path,
    (assets, shape, root): (&Assets, Shape, Option<&Root>),
    options: &RunOptions,
) -> Result<Vec<Touched>, TemplateError> {
    let (reading, looking) = (|| host("read a template"), || host("look at the pages of a VM"));
    let state = read(&directory.join(STATE), MAX_STATE).map_err(reading())?.unwrap_or_default();
    let memory = File::open(directory.join(MEMORY)).map_err(reading())?;
    let inode = memory.metadata().map_err(reading())?.ino();
    let snapshot = Some(Snapshot::new(SavedVm::decode(&state)?, memory));
    let in_slots = match root {
        Some(root) => root.disks(assets, directory)?,
        None => Vec::new(),
    };
    let machine = (assets, shape, options);
    let (tell, told) = Tie::pair().map_err(looking())?;
    // The pages of a process that is confined can't be looked at by others. It opens them itself before it is.
    let leave = move || drop(send_pages(&tell));
    let (making, told) = Making::start(directory, machine, in_slots, snapshot, leave, told)?;
    let vm = &making.vm;
    if shape.is_pod {
        wake(vm, directory, Vec::new())?;
    } else {
        run_container(vm, directory, (assets, root), &making.id, options)?;
    }
    pages(&told, inode).map_err(looking())
}

/// Sends what says which pages this process has.
fn send_pages(tell: &Tie) -> io::Result<()> {
    let files = [File::open("/proc/self/maps")?, File::open("/proc/self/pagemap")?];
    tell.send_with(&(), &files.each_ref().map(AsFd::as_fd))
}

/// Makes the VM one with `disks`.
pub(super) fn wake(vm: &VmProcess, directory: &Path, disks: Vec<Disk>) -> Result<Connection, TemplateError> {
    let disks = put(vm, disks, 0, &mut || said(vm)).map_err(outcome)?;
    Ok(awake(&directory.join(VSOCK), disks, START)?)
}

/// What the VM says next.
fn said(vm: &VmProcess) -> Result<Said, SessionError> {
    loop {
        return match vm.receive() {
            Some(FromVm::Built) => Ok(Said::Built),
            Some(FromVm::Slot { number, failure }) => Ok(Said::Slot(number, failure)),
            Some(FromVm::Pressed | FromVm::Printed) => continue,
            Some(FromVm::Failed(failure)) => Err(SessionError::Disk(failure.text)),
            Some(FromVm::Ended(end)) => Err(SessionError::Disk(end.text)),
            None => Err(SessionError::Disk("its process has ended".to_owned())),
        };
    }
}

fn outcome(error: SessionError) -> TemplateError {
    RunError::Session(Box::new(error)).into()
}

/// Runs a container as `mvm run` does, to its end. Its image is the agent's own disk, unless there is a `root`; its program
/// is the agent.
fn run_container(
    vm: &VmProcess,
    directory: &Path,
    (assets, root): (&Assets, Option<&Root>),
    id: &VmId,
    options: &RunOptions,
) -> Result<(), TemplateError> {
    let options = RunOptions { network: options.network.clone(), init: true, ..RunOptions::default() };
    let of_options = |error| TemplateError::from(RunError::from(error));
    let mut disks = Vec::new();
    if let (None, Storage::Disk(size)) = (root, storage(&options)) {
        let changes = changes::open_or_create(&assets.changes, directory, size);
        let changes = changes.map_err(host("make a disk for a container's changes"))?;
        disks = vec![Disk::open(&assets.root, true, ImageFormat::Raw), open_disk(&changes)];
    }
    let disks: Result<_, _> = disks.into_iter().collect();
    let disks = disks.map_err(|error| RunError::Vm(devices::log::chain(&error)))?;
    let mut connection = wake(vm, directory, disks)?;
    let program = if root.is_some() { "/proc/self/exe" } else { "/sbin/init" };
    let command = [program, "--version"].map(ToOwned::to_owned).to_vec();
    let image = ImageConfig { command, ..ImageConfig::default() };
    let mut container = container(id.as_str(), &image, &options, &Prepared::default()).map_err(of_options)?;
    if let Some(root) = root {
        container.writable = root.writable();
    }
    container.process.seccomp = filters(&options).map_err(of_options)?;
    connection.send(&Request::Start(Box::new(container)))?;
    loop {
        match connection.receive_within(START)? {
            Reply::Started => {}
            Reply::Exited(_) => return Ok(()),
            Reply::Failed(failure) => return Err(outcome(SessionError::Failed(failure))),
            other => return Err(ConnectionError::Unexpected(format!("{other:?}")).into()),
        }
    }
}

/// The pages that the process that has called [`send_pages`] has of the file with that inode.
fn pages(told: &Tie, inode: u64) -> io::Result<Vec<Touched>> {
    let received = told.receive_with_by::<()>(Instant::now() + START)?;
    let files = received.map(|((), files)| files).unwrap_or_default();
    let Ok([maps, entries]) = <[_; 2]>::try_from(files) else { return Err(io::ErrorKind::NotFound.into()) };
    let (maps, entries) = (io::read_to_string(File::from(maps).take(MAX_MAPS))?, File::from(entries));
    let mut runs = Vec::new();
    for (start, end, place) in maps.lines().filter_map(|line| mapping(line, inode)) {
        let pages = usize::try_from(end.saturating_sub(start) / PAGE).map_err(io::Error::other)?;
        let mut bytes = vec![0; pages.saturating_mul(8)];
        entries.read_exact_at(&mut bytes, start / PAGE * 8)?;
        let (entries, _) = bytes.as_chunks::<8>();
        add(&mut runs, place, entries.iter().map(|entry| u64::from_ne_bytes(*entry)));
    }
    Ok(runs)
}

/// Where a line of /proc/PID/maps says that the memory is mapped, as the file with that inode or as what a VM shares:
/// from, to, and the place in the file.
fn mapping(line: &str, inode: u64) -> Option<(u64, u64, u64)> {
    let mut words = line.split_ascii_whitespace();
    let (from, to) = words.next()?.split_once('-')?;
    let place = words.nth(1)?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let found = words.nth(1)?.parse::<u64>().ok()?;
    let name = words.next().and_then(|path| path.strip_prefix("/memfd:"));
    let is_memory = found == inode || name == Some(vmm::SHARED_MEMORY);
    is_memory.then_some((hex(from)?, hex(to)?, hex(place)?))
}

/// Adds the pages at `place` and behind it to `runs`, as the entries of /proc/PID/pagemap say.
fn add(runs: &mut Vec<Touched>, place: u64, entries: impl Iterator<Item = u64>) {
    for (place, entry) in (0..).map(|page: u64| place.saturating_add(page * PAGE)).zip(entries) {
        if entry & IS_PRESENT == 0 {
            continue;
        }
        let is_written = entry & IS_FILES == 0;
        match runs.last_mut() {
            Some(run) if run.place + run.bytes == place && run.is_written == is_written => run.bytes += PAGE,
            _ => runs.push(Touched { place, bytes: PAGE, is_written }),
        }
    }
}

/// As the bytes of a file.
pub(super) fn encode(touched: &[Touched]) -> Vec<u8> {
    let number = |bytes: u64| u32::try_from(bytes / PAGE).unwrap_or(u32::MAX).to_le_bytes();
    let entry =
        |run: &Touched| [number(run.place), number(run.bytes), u32::from(run.is_written).to_le_bytes()];
    touched.iter().flat_map(entry).flatten().collect()
}

/// Reads what [`encode`] gave. It says what is to be there sooner, and nothing that could be wrong.
pub(super) fn decode(bytes: &[u8]) -> Vec<Touched> {
    let (numbers, _) = bytes.as_chunks::<4>();
    let (runs, _) = numbers.as_chunks::<3>();
    let run = |[place, count, is_written]: &[[u8; 4]; 3]| {
        let pages = |number: &[u8; 4]| u64::from(u32::from_le_bytes(*number)) * PAGE;
        Touched { place: pages(place), bytes: pages(count), is_written: *is_written != [0; 4] }
    };
    runs.iter().map(run).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_follow_each_other_are_one_run() {
        let mut runs = Vec::new();
        let (file, copy) = (IS_PRESENT | IS_FILES, IS_PRESENT);
        add(&mut runs, 2 << 20, [0, file, file, copy, 0, copy, IS_FILES].into_iter());
        let page = |number: u64, count: u64, is_written| Touched {
            place: (2 << 20) + number * PAGE,
            bytes: count * PAGE,
            is_written,
        };
        assert_eq!(runs, [page(1, 2, false), page(3, 1, true), page(5, 1, true)]);
        assert_eq!(decode(&encode(&runs)), runs);
        assert_eq!(decode(&[1; 11]), []);
    }

    #[test]
    fn this_process_has_what_it_touched() {
        use std::os::fd::AsRawFd;
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 * PAGE).unwrap();
        file.write_all_at(&[1; 64 << 12], 0).unwrap();
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let size = 32 << 12;
        // SAFETY: it is a new mapping, which lives as long as the process.
        let start = unsafe {
            let start = libc::mmap(
                std::ptr::null_mut(),
                size,
                protection,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                4 << 12,
            );
            assert_ne!(start, libc::MAP_FAILED);
            libc::madvise(start, size, libc::MADV_RANDOM);
            start.cast::<u8>()
        };
        // SAFETY: the page is in the mapping.
        unsafe { start.add(3 << 12).write_volatile(9) };
        let (told, tell) = Tie::pair().unwrap();
        send_pages(&tell).unwrap();
        let runs = pages(&told, file.metadata().unwrap().ino()).unwrap();
        let written: Vec<_> = runs.iter().filter(|run| run.is_written).collect();
        assert_eq!(written, [&Touched { place: 7 * PAGE, bytes: PAGE, is_written: true }], "{runs:?}");
    }
}
