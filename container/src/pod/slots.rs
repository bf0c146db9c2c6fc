//! Which disks are in the slots of a pod's VM.

use instance::VolumeName;

/// What a slot is used for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Use {
    Free,
    /// A disk is put in, or taken out.
    Moving,
    /// An image, for so many containers.
    Image {
        id: String,
        sectors: u64,
        users: usize,
    },
    /// A container's changes.
    Changes,
    /// A volume, for so many containers.
    Volume {
        name: VolumeName,
        sectors: u64,
        users: usize,
    },
}

/// The slots of a VM.
#[derive(Debug)]
pub struct SlotTable(Vec<Use>);

/// Where an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// In this slot, with so many sectors.
    There(usize, u64),
    /// It is to be put into this one.
    New(usize),
}

impl SlotTable {
    /// So many empty ones.
    pub fn new(count: usize) -> Self {
        Self(vec![Use::Free; count])
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// A slot that a disk is about to be put into.
    pub fn take(&mut self) -> Option<usize> {
        let slot = self.0.iter().position(|used| *used == Use::Free)?;
        self.set(slot, Use::Moving);
        Some(slot)
    }

    /// A slot for the image `id`, which it is in already where others use it.
    pub fn take_image(&mut self, id: &str) -> Option<Image> {
        let found = self.0.iter_mut().enumerate().find_map(|(slot, used)| match used {
            Use::Image { id: known, sectors, users } if known == id => {
                *users = users.saturating_add(1);
                Some(Image::There(slot, *sectors))
            }
            _ => None,
        });
        found.or_else(|| self.take().map(Image::New))
    }

    /// The image `id` is in `slot` now, for one container.
    pub fn has_image(&mut self, slot: usize, id: &str, sectors: u64) {
        self.set(slot, Use::Image { id: id.to_owned(), sectors, users: 1 });
    }

    /// A container's changes are in `slot` now.
    pub fn has_changes(&mut self, slot: usize) {
        self.set(slot, Use::Changes);
    }

    /// The volume `name` is in `slot` now, for one container.
    pub fn has_volume(&mut self, slot: usize, name: &VolumeName, sectors: u64) {
        self.set(slot, Use::Volume { name: name.clone(), sectors, users: 1 });
    }

    /// Where the volume `name` is for other containers, and its sectors; another one has it now.
    pub fn join_volume(&mut self, name: &VolumeName) -> Option<(usize, u64)> {
        self.0.iter_mut().enumerate().find_map(|(slot, used)| match used {
            Use::Volume { name: known, sectors, users } if known == name => {
                *users = users.saturating_add(1);
                Some((slot, *sectors))
            }
            _ => None,
        })
    }

    /// One container less uses `slot`: whether its disk is to be taken out.
    pub fn leave(&mut self, slot: usize) -> bool {
        match self.0.get_mut(slot) {
            Some(Use::Image { users, .. } | Use::Volume { users, .. }) if *users > 1 => {
                *users -= 1;
                false
            }
            Some(used @ (Use::Image { .. } | Use::Changes | Use::Volume { .. })) => {
                *used = Use::Moving;
                true
            }
            _ => false,
        }
    }

    /// There is no disk in `slot` any more.
    pub fn free(&mut self, slot: usize) {
        self.set(slot, Use::Free);
    }

    fn set(&mut self, slot: usize, used: Use) {
        if let Some(place) = self.0.get_mut(slot) {
            *place = used;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_there_once_for_all_that_use_it() {
        let mut slots = SlotTable::new(3);
        assert_eq!(slots.take_image("a"), Some(Image::New(0)));
        slots.has_image(0, "a", 8);
        assert_eq!(slots.take_image("a"), Some(Image::There(0, 8)));
        assert_eq!(slots.take(), Some(1));
        slots.has_changes(1);
        assert!(!slots.leave(0));
        assert!(slots.leave(0) && slots.leave(1));
        // While it is taken out it is no use to others.
        assert_eq!(slots.take_image("a"), Some(Image::New(2)));
        assert_eq!(slots.take(), None);
        slots.free(1);
        assert_eq!(slots.take(), Some(1));
        assert!(!slots.leave(1) && !slots.leave(99));
    }

    #[test]
    fn a_volume_is_there_once_for_all_that_use_it() {
        let mut slots = SlotTable::new(2);
        let (data, other) = ("data".parse().unwrap(), "other".parse().unwrap());
        assert_eq!((slots.join_volume(&data), slots.take()), (None, Some(0)));
        slots.has_volume(0, &data, 8);
        assert_eq!((slots.join_volume(&data), slots.join_volume(&other)), (Some((0, 8)), None));
        assert!(!slots.leave(0));
        assert!(slots.leave(0));
        // While it is taken out it is no use to others.
        assert_eq!((slots.join_volume(&data), slots.take()), (None, Some(1)));
    }
}
