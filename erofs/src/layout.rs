//! The on-disk format (`erofs_fs.h`): little endian, 4 KiB blocks, inodes of 64 bytes, no compression.

/// Bytes in a block.
pub const BLOCK: u64 = 4096;
/// [`BLOCK`], for sizes in memory.
pub const BLOCK_SIZE: usize = 4096;

/// Where the superblock is.
pub const SUPER_OFFSET: usize = 1024;
const SUPER_SIZE: usize = 128;
const MAGIC: u32 = 0xe0f5_e1e2;
const BLOCK_BITS: u8 = 12;
/// The superblock has a checksum; times are those of the last modification.
const FEATURES_COMPAT: u32 = 1 | 2;

/// The unit in which inodes are numbered: a NID is an inode's place, counted in slots from the start of the metadata.
pub const SLOT: u64 = 32;
/// Bytes of an extended inode.
pub const INODE_SIZE: usize = 64;
/// Bytes in front of a directory entry's name.
pub const DIRENT_SIZE: usize = 12;
/// Bytes of the header in front of an inode's extended attributes.
const XATTR_HEADER: usize = 12;
/// The most bytes of a name (`EROFS_NAME_LEN`).
pub const MAX_NAME: usize = 255;

/// `i_format` of an inode whose data is in blocks of its own.
const PLAIN: u16 = 1;
/// `i_format` of an inode whose last, partial block follows the inode.
const INLINE: u16 = 1 | 2 << 1;

pub const S_IFMT: u16 = 0o170_000;
pub const S_IFIFO: u16 = 0o010_000;
pub const S_IFCHR: u16 = 0o020_000;
pub const S_IFDIR: u16 = 0o040_000;
pub const S_IFBLK: u16 = 0o060_000;
pub const S_IFREG: u16 = 0o100_000;
pub const S_IFLNK: u16 = 0o120_000;

/// What a superblock says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Superblock {
    pub root_nid: u16,
    pub inodes: u64,
    pub blocks: u32,
    /// The block where the metadata begins.
    pub meta_block: u32,
    pub uuid: [u8; 16],
}

impl Superblock {
    /// The first block of an image, which has the superblock in it.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; SUPER_OFFSET];
        bytes.extend(MAGIC.to_le_bytes());
        bytes.extend([0; 4]); // the checksum
        bytes.extend(FEATURES_COMPAT.to_le_bytes());
        bytes.extend([BLOCK_BITS, 0]);
        bytes.extend(self.root_nid.to_le_bytes());
        bytes.extend(self.inodes.to_le_bytes());
        bytes.extend([0; 12]); // the time of building, so that the same input makes the same image
        bytes.extend(self.blocks.to_le_bytes());
        bytes.extend(self.meta_block.to_le_bytes());
        bytes.extend([0; 4]); // shared extended attributes: none
        bytes.extend(self.uuid);
        bytes.resize(BLOCK_SIZE, 0);
        // The kernel starts with all ones and does not invert the result.
        let checksum = !crc32c::crc32c(bytes.get(SUPER_OFFSET..).unwrap_or_default());
        if let Some(place) = bytes.get_mut(SUPER_OFFSET + 4..SUPER_OFFSET + 8) {
            place.copy_from_slice(&checksum.to_le_bytes());
        }
        bytes
    }

    /// Reads the first block of an image; `None` where it is not one that [`encode`](Self::encode) made.
    pub fn decode(block: &[u8]) -> Option<Self> {
        let mut checked = block.get(..BLOCK_SIZE)?.to_vec();
        let stored = u32_at(&checked, SUPER_OFFSET + 4)?;
        checked.get_mut(SUPER_OFFSET + 4..SUPER_OFFSET + 8)?.fill(0);
        let bytes = checked.get(SUPER_OFFSET..)?;
        if u32_at(bytes, 0)? != MAGIC || !crc32c::crc32c(bytes) != stored {
            return None;
        }
        Some(Self {
            root_nid: u16_at(bytes, 14)?,
            inodes: u64_at(bytes, 16)?,
            blocks: u32_at(bytes, 36)?,
            meta_block: u32_at(bytes, 40)?,
            uuid: bytes.get(48..64)?.try_into().ok()?,
        })
    }
}

const _: () = assert!(SUPER_OFFSET + SUPER_SIZE <= BLOCK_SIZE);

/// An inode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inode {
    /// Whether the last, partial block of its data follows the inode.
    pub is_inline: bool,
    /// Bytes of the extended attributes behind the inode.
    pub xattr_bytes: usize,
    pub mode: u16,
    pub size: u64,
    /// The first block of the data, or the device number.
    pub block: u32,
    pub number: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    pub nanoseconds: u32,
    pub links: u32,
}

impl Inode {
    pub fn encode(&self) -> [u8; INODE_SIZE] {
        // In units of 4 bytes behind the header, plus 1.
        let xattrs = match self.xattr_bytes.checked_sub(XATTR_HEADER) {
            None => 0,
            Some(entries) => u16::try_from(entries / 4 + 1).unwrap_or(u16::MAX),
        };
        let mut bytes = Vec::with_capacity(INODE_SIZE);
        bytes.extend(if self.is_inline { INLINE } else { PLAIN }.to_le_bytes());
        bytes.extend(xattrs.to_le_bytes());
        bytes.extend(self.mode.to_le_bytes());
        bytes.extend([0; 2]);
        bytes.extend(self.size.to_le_bytes());
        bytes.extend(self.block.to_le_bytes());
        bytes.extend(self.number.to_le_bytes());
        bytes.extend(self.uid.to_le_bytes());
        bytes.extend(self.gid.to_le_bytes());
        bytes.extend(self.mtime.to_le_bytes());
        bytes.extend(self.nanoseconds.to_le_bytes());
        bytes.extend(self.links.to_le_bytes());
        bytes.resize(INODE_SIZE, 0);
        bytes.try_into().unwrap_or([0; INODE_SIZE])
    }

    /// Reads an inode; `None` where it is not one that [`encode`](Self::encode) makes.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let is_inline = match u16_at(bytes, 0)? {
            PLAIN => false,
            INLINE => true,
            _ => return None,
        };
        let xattrs = usize::from(u16_at(bytes, 2)?);
        Some(Self {
            is_inline,
            xattr_bytes: if xattrs == 0 { 0 } else { XATTR_HEADER + (xattrs - 1) * 4 },
            mode: u16_at(bytes, 4)?,
            size: u64_at(bytes, 8)?,
            block: u32_at(bytes, 16)?,
            number: u32_at(bytes, 20)?,
            uid: u32_at(bytes, 24)?,
            gid: u32_at(bytes, 28)?,
            mtime: i64::from_le_bytes(bytes.get(32..40)?.try_into().ok()?),
            nanoseconds: u32_at(bytes, 40)?,
            links: u32_at(bytes, 44)?,
        })
    }
}

/// A device number as an inode holds it (`new_encode_dev`).
pub fn encode_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// An extended attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xattr {
    /// Its whole name, as in `user.mime_type`.
    pub name: Box<[u8]>,
    pub value: Box<[u8]>,
}

/// The prefixes of names, by the index that stands for them. A POSIX ACL's name is nothing but its prefix.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

fn split_name(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|(prefix, index)| {
        let rest = name.strip_prefix(*prefix)?;
        let is_whole = !prefix.ends_with(b".");
        (is_whole == rest.is_empty() && rest.len() <= MAX_NAME).then_some((*index, rest))
    })
}

impl Xattr {
    /// Whether there is a place for it in EROFS: it has a prefix that EROFS knows, and is not too long.
    pub fn can_be_stored(&self) -> bool {
        split_name(&self.name).is_some() && u16::try_from(self.value.len()).is_ok()
    }
}

/// The extended attributes as they follow an inode. Those that have no place in EROFS are left out.
pub fn encode_xattrs(xattrs: &[Xattr]) -> Vec<u8> {
    let mut bytes = vec![0; XATTR_HEADER];
    for Xattr { name, value } in xattrs {
        let Some((index, rest)) = split_name(name) else { continue };
        let (Ok(name_length), Ok(value_length)) = (u8::try_from(rest.len()), u16::try_from(value.len()))
        else {
            continue;
        };
        bytes.extend([name_length, index]);
        bytes.extend(value_length.to_le_bytes());
        bytes.extend(rest);
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    if bytes.len() == XATTR_HEADER { Vec::new() } else { bytes }
}

/// Reads what [`encode_xattrs`] wrote.
pub fn decode_xattrs(bytes: &[u8]) -> Option<Vec<Xattr>> {
    let mut xattrs = Vec::new();
    let mut rest = if bytes.is_empty() { bytes } else { bytes.get(XATTR_HEADER..)? };
    while let Some((&[name_length, index], _)) = rest.split_first_chunk::<2>() {
        let value_at = 4 + usize::from(name_length);
        let end = value_at + usize::from(u16_at(rest, 2)?);
        let (prefix, _) = PREFIXES.iter().find(|(_, known)| *known == index)?;
        let name = [prefix, rest.get(4..value_at)?].concat().into();
        xattrs.push(Xattr { name, value: rest.get(value_at..end)?.into() });
        rest = rest.get(end.next_multiple_of(4)..)?;
    }
    Some(xattrs)
}

/// The types of directory entries, by the mode of what they name (`FT_REG_FILE` and so on).
pub fn entry_type(mode: u16) -> u8 {
    match mode & S_IFMT {
        S_IFREG => 1,
        S_IFDIR => 2,
        S_IFCHR => 3,
        S_IFBLK => 4,
        S_IFIFO => 5,
        S_IFLNK => 7,
        _ => 0,
    }
}

/// The entry of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    pub name: &'a [u8],
    pub nid: u64,
    pub kind: u8,
}

/// How many bytes a directory has whose sorted names are of these lengths.
pub fn directory_size(names: impl Iterator<Item = usize>) -> u64 {
    let (mut full, mut used) = (0, 0);
    for name in names {
        let entry = DIRENT_SIZE + name;
        if used + entry > BLOCK_SIZE {
            full += BLOCK;
            used = 0;
        }
        used += entry;
    }
    // It is at most a block.
    full + u64::try_from(used).unwrap_or(BLOCK)
}

/// A directory's data: each block has entries and then their names. `entries` are sorted.
pub fn encode_directory(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        let mut used = 0;
        let mut fits = |entry: &Entry<'_>| {
            used += DIRENT_SIZE + entry.name.len();
            used <= BLOCK_SIZE
        };
        // An entry of 255 bytes fits into an empty block.
        let count = rest.iter().take_while(|entry| fits(entry)).count().max(1);
        let (block, others) = rest.split_at(count.min(rest.len()));
        bytes.resize(bytes.len().next_multiple_of(BLOCK_SIZE), 0);
        let mut name_at = block.len() * DIRENT_SIZE;
        for entry in block {
            bytes.extend(entry.nid.to_le_bytes());
            bytes.extend(u16::try_from(name_at).unwrap_or(u16::MAX).to_le_bytes());
            bytes.extend([entry.kind, 0]);
            name_at += entry.name.len();
        }
        block.iter().for_each(|entry| bytes.extend(entry.name));
        rest = others;
    }
    bytes
}

/// Reads a block of a directory.
pub fn decode_directory(block: &[u8]) -> Option<Vec<Entry<'_>>> {
    let names_at = usize::from(u16_at(block, 8)?);
    if names_at == 0 || !names_at.is_multiple_of(DIRENT_SIZE) {
        return None;
    }
    let offset = |index: usize| Some(usize::from(u16_at(block, index * DIRENT_SIZE + 8)?));
    let count = names_at / DIRENT_SIZE;
    (0..count)
        .map(|index| {
            let start = offset(index)?;
            let name = if index + 1 < count {
                block.get(start..offset(index + 1)?)?
            } else {
                // The last one ends with the block, or before the zeros that fill it.
                block.get(start..)?.split(|byte| *byte == 0).next()?
            };
            let nid = u64_at(block, index * DIRENT_SIZE)?;
            let kind = *block.get(index * DIRENT_SIZE + 10)?;
            (!name.is_empty()).then_some(Entry { name, nid, kind })
        })
        .collect()
}

pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|chunk| u16::from_le_bytes(*chunk))
}

pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|chunk| u32::from_le_bytes(*chunk))
}

pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|chunk| u64::from_le_bytes(*chunk))
}
