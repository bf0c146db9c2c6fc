//! The initial RAM disk.

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::{BootFile, Initrd, Kernel, LoadError, Problem, low_ram_end};
use crate::memory::{PAGE, read_file};

/// Loads an initrd as high as `kernel` allows, so that the kernel has room to unpack itself.
///
/// # Errors
///
/// [`LoadError`] names the file and what is wrong with it.
pub fn load(memory: &GuestMemoryMmap, kernel: &Kernel, initrd: BootFile) -> Result<Initrd, LoadError> {
    let BootFile { what, path, file, length } = initrd;
    let load = || {
        let top = low_ram_end(memory).min(kernel.initrd_address_max().saturating_add(1));
        let room = top.saturating_sub(kernel.end.next_multiple_of(PAGE));
        let start = top.checked_sub(length).map(|start| start / PAGE * PAGE);
        let start = start.filter(|start| *start >= kernel.end);
        let start = start.and_then(|start| u32::try_from(start).ok());
        let (Some(address), Ok(size)) = (start, u32::try_from(length)) else {
            return Err(Problem::NoRoom { length, room });
        };
        read_file(memory, GuestAddress(address.into()), &file, 0, length).map_err(Problem::Memory)?;
        Ok(Initrd { address, length: size })
    };
    load().map_err(|problem| problem.of(what, &path))
}

#[cfg(test)]
mod tests {
    use linux_loader::loader::bootparam::setup_header;
    use vm_memory::Bytes;

    use super::*;
    use crate::loader::EntryPoint;
    use crate::memory::reserve;

    const MIB: u64 = 1 << 20;

    fn kernel(end: u64) -> Kernel {
        Kernel { entry: EntryPoint::Linux64(MIB), end, setup_header: None }
    }

    fn initrd_of(length: u64, kernel: &Kernel) -> Result<Initrd, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![3; usize::try_from(length).unwrap()]).unwrap();
        let memory = reserve(&[(GuestAddress(0), 16 * MIB)]).unwrap();
        let initrd = BootFile::initrd(file.path()).and_then(|file| load(&memory, kernel, file));
        let initrd = initrd.map_err(|error| error.problem.to_string())?;
        let end = u64::from(initrd.address) + length;
        assert_eq!(memory.read_obj::<u8>(GuestAddress(end - 1)).unwrap(), 3);
        Ok(initrd)
    }

    #[test]
    fn it_comes_to_the_top_of_ram_at_a_page() {
        let initrd = initrd_of(5000, &kernel(2 * MIB)).unwrap();
        assert_eq!(initrd, Initrd { address: 0x100_0000 - 8192, length: 5000 });
    }

    #[test]
    fn it_stays_below_the_address_that_the_kernel_says() {
        let header = setup_header { initrd_addr_max: 0x7f_ffff, ..Default::default() };
        let kernel = Kernel { setup_header: Some(Box::new(header)), ..kernel(2 * MIB) };
        assert_eq!(initrd_of(4096, &kernel).unwrap().address, 0x80_0000 - 4096);
    }

    #[test]
    fn it_never_overlaps_the_kernel() {
        assert!(initrd_of(8 * MIB, &kernel(8 * MIB)).is_ok());
        let error = initrd_of(8 * MIB + 1, &kernel(8 * MIB)).unwrap_err();
        assert!(
            error.contains("has 8.1 MiB, but the kernel leaves room for 8.0 MiB")
                && error.contains("use more --memory"),
            "{error}"
        );
        assert!(initrd_of(17 * MIB, &kernel(8 * MIB)).is_err());
    }
}
