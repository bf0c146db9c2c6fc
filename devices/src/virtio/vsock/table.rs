//! All that the device has an open socket for, or has still to tell the guest of.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::backlog::Backlog;
use super::connection::{Connection, Key};
use super::stream::HostStream;

/// How often deadlines are looked through at most. A guest could have thousands of them, each at another time.
const SCAN_INTERVAL: Duration = Duration::from_millis(5);

/// The most entries whose deadlines pass at once; the others' pass with the next scan.
const MOST_EXPIRED: usize = 256;

/// The name of an entry. Names are not given again before 2³¹ others, so that an event of a socket that is closed
/// does not reach the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Id {
    index: u32,
    generation: u32,
}

impl Id {
    pub(super) fn to_u64(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    pub(super) fn from_u64(value: u64) -> Self {
        let half = |value: u64| u32::try_from(value & u64::from(u32::MAX)).unwrap_or_default();
        Self { index: half(value), generation: half(value >> 32) }
    }
}

/// What an entry is.
pub(super) enum Role {
    /// A process of the host connected and has not said to which port yet.
    Handshake,
    /// A connection that the guest knows of, or will.
    Connection(Connection),
    /// The guest is done with the connection, and the host has yet to read the last of it.
    Draining {
        /// The size of its window.
        window: u32,
    },
}

/// A socket of the host and what belongs to it.
pub(super) struct Entry {
    pub(super) role: Role,
    /// The host's socket, while it is open.
    pub(super) stream: Option<HostStream>,
    /// What the guest sent and the socket did not take yet.
    pub(super) backlog: Backlog,
    /// When it ends if nothing happens before.
    deadline: Option<Instant>,
    /// When the device stops to try to connect.
    pub(super) give_up: Option<Instant>,
    /// Another process was asked to connect it, and has not answered.
    pub(super) asked: bool,
    /// Whether it waits for its turn to send to the guest.
    pub(super) queued: bool,
    /// Whether the socket filled all buffers that it was last read to.
    pub(super) is_busy: bool,
}

impl Entry {
    pub(super) fn new(role: Role, stream: Option<HostStream>) -> Self {
        Self {
            role,
            stream,
            backlog: Backlog::default(),
            deadline: None,
            give_up: None,
            asked: false,
            queued: false,
            is_busy: false,
        }
    }

    pub(super) fn connection(&mut self) -> Option<&mut Connection> {
        match &mut self.role {
            Role::Connection(connection) => Some(connection),
            Role::Handshake | Role::Draining { .. } => None,
        }
    }
}

#[derive(Default)]
struct Slot {
    generation: u32,
    entry: Option<Entry>,
}

/// The entries, at most as many as there are descriptors for.
pub(super) struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    keys: HashMap<Key, Id>,
    most: usize,
    handshakes: usize,
    /// No deadline is before it; there may be none at all.
    earliest: Option<Instant>,
    next_scan: Instant,
}

impl Table {
    /// An empty table for at most `most` entries.
    pub(super) fn new(most: usize) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            keys: HashMap::new(),
            most,
            handshakes: 0,
            earliest: None,
            next_scan: Instant::now(),
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty() && self.slots.len() >= self.most
    }

    /// Adds an entry; `None`, where the table is full or has a connection of that key.
    pub(super) fn insert(&mut self, entry: Entry) -> Option<Id> {
        let key = match &entry.role {
            Role::Connection(connection) => Some(connection.key()),
            Role::Handshake | Role::Draining { .. } => None,
        };
        if key.is_some_and(|key| self.keys.contains_key(&key)) || self.is_full() {
            return None;
        }
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                let index = u32::try_from(self.slots.len()).ok()?;
                self.slots.push(Slot::default());
                index
            }
        };
        let slot = self.slots.get_mut(usize::try_from(index).ok()?)?;
        self.handshakes += usize::from(matches!(entry.role, Role::Handshake));
        slot.entry = Some(entry);
        let id = Id { index, generation: slot.generation };
        if let Some(key) = key {
            self.keys.insert(key, id);
        }
        Some(id)
    }

    pub(super) fn get(&mut self, id: Id) -> Option<&mut Entry> {
        let slot = self.slots.get_mut(usize::try_from(id.index).ok()?)?;
        slot.entry.as_mut().filter(|_| slot.generation == id.generation)
    }

    pub(super) fn find(&self, key: Key) -> Option<Id> {
        self.keys.get(&key).copied()
    }

    pub(super) fn remove(&mut self, id: Id) -> Option<Entry> {
        self.get(id)?;
        let slot = self.slots.get_mut(usize::try_from(id.index).ok()?)?;
        let entry = slot.entry.take()?;
        slot.generation = slot.generation.wrapping_add(1) & (u32::MAX >> 1);
        self.free.push(id.index);
        match &entry.role {
            Role::Handshake => self.handshakes -= 1,
            Role::Connection(connection) => {
                self.keys.remove(&connection.key());
            }
            Role::Draining { .. } => {}
        }
        Some(entry)
    }

    /// Makes a connection of a handshake.
    pub(super) fn set_connection(&mut self, id: Id, connection: Connection) {
        let key = connection.key();
        if let Some(entry) = self.get(id) {
            entry.role = Role::Connection(connection);
            self.handshakes -= 1;
            self.keys.insert(key, id);
        }
    }

    /// Removes a connection for the guest; the host has yet to read the last of it.
    pub(super) fn set_draining(&mut self, id: Id) {
        if let Some(entry) = self.get(id)
            && let Some(connection) = entry.connection()
        {
            let (key, window) = (connection.key(), connection.window());
            entry.role = Role::Draining { window };
            self.keys.remove(&key);
        }
    }

    pub(super) fn set_deadline(&mut self, id: Id, deadline: Option<Instant>) {
        if let Some(entry) = self.get(id) {
            entry.deadline = deadline;
            if let Some(deadline) = deadline {
                self.earliest = Some(self.earliest.map_or(deadline, |earliest| earliest.min(deadline)));
            }
        }
    }

    /// Puts all deadlines off by `time`, in which nothing could happen.
    pub(super) fn put_off(&mut self, time: Duration) {
        for entry in self.slots.iter_mut().filter_map(|slot| slot.entry.as_mut()) {
            for at in [&mut entry.deadline, &mut entry.give_up].into_iter().flatten() {
                *at += time;
            }
        }
        if let Some(earliest) = &mut self.earliest {
            *earliest += time;
        }
    }

    /// When [`expired`](Self::expired) may have something again.
    pub(super) fn earliest(&self) -> Option<Instant> {
        self.earliest.map(|earliest| earliest.max(self.next_scan))
    }

    /// Takes the deadlines that have passed, and gives the entries that had them.
    pub(super) fn expired(&mut self, now: Instant) -> Vec<Id> {
        let mut expired = Vec::new();
        if self.earliest().is_none_or(|earliest| earliest > now) {
            return expired;
        }
        self.next_scan = now + SCAN_INTERVAL;
        self.earliest = None;
        for (index, slot) in (0..).zip(&mut self.slots) {
            let Some(entry) = &mut slot.entry else { continue };
            let Some(deadline) = entry.deadline else { continue };
            if deadline <= now && expired.len() < MOST_EXPIRED {
                entry.deadline = None;
                expired.push(Id { index, generation: slot.generation });
            } else {
                self.earliest = Some(self.earliest.map_or(deadline, |earliest| earliest.min(deadline)));
            }
        }
        expired
    }

    /// How many processes have not said yet to which port.
    pub(super) fn handshakes(&self) -> usize {
        self.handshakes
    }

    /// The one of them whose deadline is first, and when that is.
    pub(super) fn first_handshake(&self) -> Option<(Instant, Id)> {
        let mut first: Option<(Instant, Id)> = None;
        for (index, slot) in (0..).zip(&self.slots) {
            let Some(Entry { role: Role::Handshake, deadline: Some(deadline), .. }) = &slot.entry else {
                continue;
            };
            if first.is_none_or(|(earliest, _)| *deadline < earliest) {
                first = Some((*deadline, Id { index, generation: slot.generation }));
            }
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handshake() -> Entry {
        Entry::new(Role::Handshake, None)
    }

    #[test]
    fn a_name_does_not_reach_the_next_entry_in_its_place() {
        let mut table = Table::new(1);
        let first = table.insert(handshake()).unwrap();
        assert!(table.insert(handshake()).is_none());
        assert!(table.remove(first).is_some());
        let second = table.insert(handshake()).unwrap();
        assert!(table.get(first).is_none() && table.remove(first).is_none());
        assert!(table.get(Id::from_u64(second.to_u64())).is_some());
    }

    #[test]
    fn ports_are_free_once_a_connection_drains() {
        let key = Key { host_port: 80, guest_port: 1 };
        let connection = || Entry::new(Role::Connection(Connection::from_host(key, 3, 100)), None);
        let mut table = Table::new(10);
        let first = table.insert(connection()).unwrap();
        assert_eq!(table.find(key), Some(first));
        assert!(table.insert(connection()).is_none());
        table.set_draining(first);
        assert_eq!(table.find(key), None);
        let second = table.insert(connection()).unwrap();
        table.remove(first);
        assert_eq!(table.find(key), Some(second));
    }

    #[test]
    fn deadlines_that_are_put_off_pass_later() {
        let mut table = Table::new(1);
        let id = table.insert(handshake()).unwrap();
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        table.set_deadline(id, Some(after(1)));
        table.put_off(Duration::from_secs(10));
        assert!(table.expired(after(10)).is_empty());
        assert_eq!(table.expired(after(12)), [id]);
    }

    #[test]
    fn deadlines_pass_once_and_those_that_were_put_off_do_not() {
        let mut table = Table::new(10);
        let [kept, put_off, later] = [(); 3].map(|()| table.insert(handshake()).unwrap());
        let start = Instant::now();
        let at = |seconds| Some(start + Duration::from_secs(seconds));
        for (id, deadline) in [(kept, at(1)), (put_off, at(1)), (later, at(5))] {
            table.set_deadline(id, deadline);
        }
        table.set_deadline(put_off, None);
        assert_eq!(table.first_handshake().map(|(_, id)| id), Some(kept));
        assert!(table.expired(start).is_empty());
        assert_eq!(table.expired(start + Duration::from_secs(2)), [kept]);
        assert_eq!(table.earliest(), at(5));
        assert_eq!(table.expired(start + Duration::from_secs(6)), [later]);
        assert_eq!(table.earliest(), None);
    }
}
