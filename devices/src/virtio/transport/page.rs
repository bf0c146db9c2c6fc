//! The registers as a driver reads them, in a page of memory.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use vm_memory::MmapRegion;

use crate::lock;

/// The length in bytes of a device's registers with its config space: one page.
pub(in crate::virtio) const LENGTH: usize = 0x1000;
const WORDS: usize = LENGTH / 4;
/// Where the config space begins (4.2.2).
pub(in crate::virtio) const CONFIG: usize = 0x100;

/// Register pages for some devices, side by side in host memory.
///
/// A vmm that shows this memory to the guest, where it reads but does not write it, spares the guest all exits for
/// reading registers; it says so with [`shown`](Self::shown).
#[derive(Clone)]
pub struct RegisterPages {
    region: Arc<MmapRegion>,
    is_shown: Arc<AtomicBool>,
}

impl RegisterPages {
    /// Pages for `count` devices.
    ///
    /// # Errors
    ///
    /// The host has no memory or address space left.
    pub fn new(count: usize) -> Result<Self, vm_memory::mmap::MmapRegionError> {
        let region = Arc::new(MmapRegion::new(count * LENGTH)?);
        Ok(Self { region, is_shown: Arc::default() })
    }

    /// The memory: a page for each device, in their order.
    pub fn region(&self) -> &MmapRegion {
        &self.region
    }

    /// The guest reads the pages itself from now on, before it runs for the first time.
    pub fn shown(&self) {
        self.is_shown.store(true, Ordering::Release);
    }

    /// The page of the device at `index`; `None` where there are not as many.
    pub fn page(&self, index: usize) -> Option<RegisterPage> {
        let offset = index.checked_mul(LENGTH)?;
        if offset.checked_add(LENGTH)? > self.region.size() {
            return None;
        }
        let words = NonNull::new(self.region.as_ptr().wrapping_add(offset))?.cast::<[AtomicU32; WORDS]>();
        Some(RegisterPage { words, pages: self.clone(), config: Mutex::new(()) })
    }
}

/// The registers of one device (4.2.2), each of which always holds what a driver reads from it.
///
/// All words may be read at any time by the guest, whose memory this is as well. One that changes by itself is changed
/// with atomic operations; the others under the transport's lock.
pub struct RegisterPage {
    /// In `pages`, which keeps it.
    words: NonNull<[AtomicU32; WORDS]>,
    pages: RegisterPages,
    /// Held to change the config space.
    config: Mutex<()>,
}

// SAFETY: the pointer is to memory that `pages` keeps, and is only used for atomic operations.
unsafe impl Send for RegisterPage {}
// SAFETY: as above.
unsafe impl Sync for RegisterPage {}

impl RegisterPage {
    fn words(&self) -> &[AtomicU32; WORDS] {
        // SAFETY: the page lies in the region and is aligned, since regions begin with a page; the region is mapped for
        // as long as `self.pages` is there; nothing but atomic operations reaches it.
        unsafe { self.words.as_ref() }
    }

    /// The register at `OFFSET`.
    pub(in crate::virtio) fn register<const OFFSET: u32>(&self) -> &AtomicU32 {
        const { assert!(OFFSET.is_multiple_of(4) && (OFFSET as usize) < LENGTH) };
        let [first, ..] = self.words();
        self.words().get(OFFSET as usize / 4).unwrap_or(first)
    }

    /// Sets the register at `OFFSET`, whose readers depend on no other.
    pub(in crate::virtio) fn set<const OFFSET: u32>(&self, value: u32) {
        self.register::<OFFSET>().store(value, Ordering::Release);
    }

    /// What a driver reads at `offset`; zeros behind the page.
    pub(in crate::virtio) fn read(&self, offset: u64, data: &mut [u8]) {
        for (byte, index) in data.iter_mut().zip(0..) {
            let at = offset.checked_add(index).and_then(|at| usize::try_from(at).ok());
            let word = at.and_then(|at| self.words().get(at / 4));
            let bytes = word.map_or(0, |word| word.load(Ordering::Acquire)).to_ne_bytes();
            *byte = at.and_then(|at| bytes.into_iter().nth(at % 4)).unwrap_or(0);
        }
    }

    /// Whether the guest reads the page itself.
    pub(in crate::virtio) fn is_shown(&self) -> bool {
        self.pages.is_shown.load(Ordering::Acquire)
    }

    /// Makes the config space `space`, and counts `generation` up before and after where that is a change (2.5.1): a
    /// driver that read before or after a part of it was changed finds another generation.
    pub(in crate::virtio) fn set_config(&self, generation: &AtomicU32, space: &[u8]) {
        let _one_change_at_a_time = lock(&self.config);
        let words = self.words().get(CONFIG / 4..).unwrap_or_default();
        let new = (0..words.len()).map(|index| {
            let mut bytes = [0; 4];
            for (byte, value) in bytes.iter_mut().zip(space.get(4 * index..).unwrap_or_default()) {
                *byte = *value;
            }
            u32::from_ne_bytes(bytes)
        });
        let changed: Vec<_> =
            words.iter().zip(new).filter(|(word, new)| word.load(Ordering::Relaxed) != *new).collect();
        if changed.is_empty() {
            return;
        }
        generation.fetch_add(1, Ordering::SeqCst);
        for (word, new) in changed {
            word.store(new, Ordering::SeqCst);
        }
        generation.fetch_add(1, Ordering::SeqCst);
    }
}
