//! What has happened to containers, images, volumes and pods: a file of the user's, a line for each event.
//!
//! `events.log` in the directory of data, and `events.log.1` with what was before, have up to 1 MiB each. Who causes an
//! event writes it; nothing else depends on it. A process that is killed while it writes costs its own event and no
//! other.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bounded::{BoundedFile, Changes, Lines, open_output};
use crate::lock::DirectoryLock;
use crate::{Entry, Kind, place, time};

const FILE: &str = "events.log";
const LOCK: &str = "events.lock";
/// The most bytes of a file, of which there are two.
const MAX_FILE: u64 = 1 << 20;
/// The most bytes of an event.
const MAX_EVENT: usize = 16 << 10;
/// How long the others that write are waited for, each of which takes a moment.
const PATIENCE: Duration = Duration::from_secs(3);

/// Something that has happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, in nanoseconds since 1970.
    pub time: u64,
    /// To what kind of thing: `container`, `image`, `volume` or `pod`.
    pub kind: String,
    /// What, in docker's words.
    pub action: String,
    /// To which.
    pub id: String,
    /// What else there is to say: its image, its name, its labels.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
}

impl Event {
    /// One that happens now.
    pub fn now(kind: &str, action: &str, id: &str, attributes: BTreeMap<String, String>) -> Self {
        let time = u64::try_from(time::since_1970().as_nanos()).unwrap_or(u64::MAX);
        Self { time, kind: kind.into(), action: action.into(), id: id.into(), attributes }
    }

    /// One that happens now to a container or pod, with its labels, its image and its name, and `more`.
    pub fn of_entry(entry: &Entry, action: &str, more: &[(&str, &str)]) -> Self {
        let mut attributes = entry.labels.clone();
        if entry.kind == Kind::Container {
            attributes.insert("image".into(), entry.image.clone());
        }
        attributes.extend(entry.name.as_ref().map(|name| ("name".to_owned(), name.to_string())));
        attributes.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        Self::now(entry.kind.as_str(), action, entry.id.as_str(), attributes)
    }

    /// Writes it. Where that fails it is missing, which is logged.
    pub fn note(&self) {
        if let Some(directory) = place::data_directory() {
            self.note_in(&directory);
        }
    }

    /// The same for what is kept in `directory`.
    pub(crate) fn note_in(&self, directory: &Path) {
        if let Err(error) = self.write(directory) {
            tracing::debug!(%error, "cannot write {FILE}");
        }
    }

    fn write(&self, directory: &Path) -> io::Result<()> {
        let mut line = serde_json::to_vec(self)?;
        if line.len() > MAX_EVENT {
            // Labels may be of any length.
            line = serde_json::to_vec(&Self { attributes: BTreeMap::new(), ..self.clone() })?;
        }
        line.push(b'\n');
        let mut options = OpenOptions::new();
        let lock = options.write(true).create(true).truncate(false).mode(0o600).open(directory.join(LOCK))?;
        // Who has it writes a line. One that is stopped meanwhile holds up nothing else: the event is lost.
        let _lock = DirectoryLock::wait_for_file(lock.into(), PATIENCE)?;
        let path = directory.join(FILE);
        if !ends_whole(&path)? {
            // What a process has left that was killed while it wrote becomes a line of its own, which is passed over.
            line.insert(0, b'\n');
        }
        BoundedFile::open(&path, MAX_FILE, 2)?.write(&line)
    }
}

/// Whether the last line of the file at `path` has its end.
fn ends_whole(path: &Path) -> io::Result<bool> {
    let file = match open_output(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    let mut last = [b'\n'];
    if let Some(place) = file.metadata()?.len().checked_sub(1) {
        file.read_exact_at(&mut last, place)?;
    }
    Ok(last == *b"\n")
}

/// Reads events, the oldest first.
pub struct EventReader {
    lines: Lines,
    changes: Changes,
}

impl EventReader {
    /// Those of this process's user.
    ///
    /// # Errors
    ///
    /// Those of the file system and of inotify.
    pub fn of_user() -> io::Result<Self> {
        let directory = place::data_directory().ok_or(io::ErrorKind::NotFound)?;
        fs::create_dir_all(&directory)?;
        Self::open(&directory)
    }

    fn open(directory: &Path) -> io::Result<Self> {
        let changes = Changes::of(directory)?;
        Ok(Self { lines: Lines::open(&directory.join(FILE), 2 * MAX_EVENT)?, changes })
    }

    /// The next event, if there is one by now.
    ///
    /// # Errors
    ///
    /// Those of reading.
    pub fn next_event(&mut self) -> io::Result<Option<Event>> {
        while let Some(line) = self.lines.next_line()? {
            // A host that went down may have left half of a line.
            if let Ok(event) = serde_json::from_slice(line) {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// Forgets that there was something new, before it is read.
    pub fn clear(&self) {
        self.changes.clear();
    }
}

impl AsFd for EventReader {
    /// Readable when there may be something new.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.changes.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: u64) -> Event {
        let attributes = BTreeMap::from([("name".to_owned(), "web".repeat(100))]);
        Event { time: number, kind: "container".into(), action: "start".into(), id: "x".into(), attributes }
    }

    fn all(reader: &mut EventReader) -> Vec<u64> {
        std::iter::from_fn(|| reader.next_event().unwrap()).map(|event| event.time).collect()
    }

    #[test]
    fn a_lock_that_is_held_for_long_holds_no_process_up() {
        let directory = tempfile::tempdir().unwrap();
        event(1).write(directory.path()).unwrap();
        let held = fs::File::open(directory.path().join(LOCK)).unwrap();
        held.lock().unwrap();
        assert_eq!(event(2).write(directory.path()).unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(held);
        event(3).write(directory.path()).unwrap();
        assert_eq!(all(&mut EventReader::open(directory.path()).unwrap()), [1, 3]);
    }

    #[test]
    fn events_are_read_as_written_also_where_files_are_renamed() {
        let directory = tempfile::tempdir().unwrap();
        let mut reader = EventReader::open(directory.path()).unwrap();
        assert!(all(&mut reader).is_empty());
        let mut read = Vec::new();
        for number in 0..6000 {
            event(number).write(directory.path()).unwrap();
            if number % 1000 == 999 {
                read.extend(all(&mut reader));
            }
        }
        assert_eq!(read, (0..6000).collect::<Vec<_>>());
        // Two files of a bounded size.
        let size = |name: &str| fs::metadata(directory.path().join(name)).unwrap().len();
        assert!(size("events.log") <= MAX_FILE && size("events.log.1") <= MAX_FILE);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3);
        let later = all(&mut EventReader::open(directory.path()).unwrap());
        assert!(later.len() > 2000 && later.ends_with(&[5998, 5999]) && later.is_sorted());
    }

    #[test]
    fn half_of_an_event_costs_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        event(1).write(directory.path()).unwrap();
        let mut reader = EventReader::open(directory.path()).unwrap();
        assert_eq!(all(&mut reader), [1]);
        // As much as a process has written that was killed, however much that is.
        let whole = serde_json::to_vec(&event(2)).unwrap();
        for length in [1, whole.len() / 2, whole.len()] {
            let half = [fs::read(&path).unwrap().as_slice(), whole.get(..length).unwrap()].concat();
            fs::write(&path, half).unwrap();
            // A reader that follows has seen the half.
            let early = all(&mut reader);
            event(3).write(directory.path()).unwrap();
            let seen = [early, all(&mut reader)].concat();
            assert_eq!(seen, if length == whole.len() { vec![2, 3] } else { vec![3] });
        }
        let later = all(&mut EventReader::open(directory.path()).unwrap());
        assert_eq!(later, [1, 3, 3, 2, 3]);
    }

    #[test]
    fn many_write_at_once_and_what_is_no_event_is_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(FILE), "{\"half\n").unwrap();
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let path = directory.path();
                scope.spawn(move || {
                    (0..50).for_each(|number| event(writer * 100 + number).write(path).unwrap())
                });
            }
        });
        let mut reader = EventReader::open(directory.path()).unwrap();
        assert_eq!(all(&mut reader).len(), 200);
        let long = Event { attributes: BTreeMap::from([("a".into(), "x".repeat(1 << 20))]), ..event(7) };
        long.write(directory.path()).unwrap();
        let read = reader.next_event().unwrap().unwrap();
        assert!(read.time == 7 && read.attributes.is_empty());
    }
}
