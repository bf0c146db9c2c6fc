//! Image formats that a guest could not read: recognized so that they are not taken for raw disks.

use std::borrow::Cow;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// What the file of a disk may contain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImageFormat {
    /// Raw data, unless the file looks like an image of another format or is compressed: then it is refused.
    #[default]
    Detect,
    /// Raw data, whatever it looks like.
    Raw,
}

/// An image format that mvm does not read, or a compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ForeignFormat {
    /// What it is called.
    pub(super) name: &'static str,
    converter: Converter,
}

/// The program that makes a raw image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Converter {
    /// `qemu-img convert`, which is given the name of the format: it does not recognize all of them by itself.
    QemuImg(&'static str),
    /// A program that writes the content of the file to its standard output, and the file names' suffix.
    Decompress(&'static str, &'static str),
}

/// Bytes by which a format is recognized, and their offset from the start of the file.
struct Magic {
    offset: u64,
    bytes: &'static [u8],
    format: ForeignFormat,
}

const fn image(offset: u64, bytes: &'static [u8], name: &'static str, qemu: &'static str) -> Magic {
    Magic { offset, bytes, format: ForeignFormat { name, converter: Converter::QemuImg(qemu) } }
}

const fn compressed(
    bytes: &'static [u8],
    name: &'static str,
    program: &'static str,
    suffix: &'static str,
) -> Magic {
    Magic {
        offset: 0,
        bytes,
        format: ForeignFormat { name, converter: Converter::Decompress(program, suffix) },
    }
}

const MAGICS: &[Magic] = &[
    image(0, b"QFI\xfb\0\0\0\x01", "QCOW", "qcow"),
    image(0, b"QFI\xfb", "QCOW2", "qcow2"),
    image(0, b"QED\0", "QED", "qed"),
    image(0, b"KDMV", "VMDK", "vmdk"),
    image(0, b"COWD", "VMDK", "vmdk"),
    image(0, b"# Disk DescriptorFile", "VMDK", "vmdk"),
    image(0, b"conectix", "VHD", "vpc"),
    image(0, b"vhdxfile", "VHDX", "vhdx"),
    image(0x40, b"\x7f\x10\xda\xbe", "VDI", "vdi"),
    compressed(b"\x1f\x8b\x08", "gzip-compressed", "gzip -dc", "gz"),
    compressed(b"\xfd7zXZ\0", "xz-compressed", "xz -dc", "xz"),
    compressed(b"\x28\xb5\x2f\xfd", "Zstandard-compressed", "zstd -dc", "zst"),
    compressed(b"BZh", "bzip2-compressed", "bzip2 -dc", "bz2"),
    compressed(b"\x04\x22\x4d\x18", "LZ4-compressed", "lz4 -dc", "lz4"),
    compressed(b"PK\x03\x04", "ZIP-compressed", "unzip -p", "zip"),
];

/// The footer of a VHD of fixed size, which follows the data; its offset is from the end of the file.
const VHD_FOOTER: Magic = image(512, b"conectix", "VHD", "vpc");

impl ForeignFormat {
    /// The format of `file`, which has `size` bytes, if it is a known one and not raw.
    pub(super) fn of(file: &File, size: u64) -> Option<Self> {
        let has = |magic: &Magic, at: u64| {
            let mut found = [0; 32];
            let Some(found) = found.get_mut(..magic.bytes.len()) else { return false };
            // What can't be read has no magic; the guest hears of the error when it reads there.
            file.read_exact_at(found, at).is_ok() && found == magic.bytes
        };
        let header = MAGICS.iter().find(|magic| has(magic, magic.offset));
        let footer_at = size.checked_sub(VHD_FOOTER.offset);
        let footer = footer_at.filter(|&at| has(&VHD_FOOTER, at)).map(|_| &VHD_FOOTER);
        header.or(footer).map(|magic| magic.format)
    }

    /// The command that makes a raw image of the one at `path`.
    pub(super) fn conversion(self, path: &Path) -> String {
        let from = quoted(path);
        match self.converter {
            Converter::QemuImg(format) => {
                let to = path.with_extension("raw");
                let to = if to == path { path.with_added_extension("raw") } else { to };
                format!("qemu-img convert -f {format} -O raw {from} {}", quoted(&to))
            }
            Converter::Decompress(program, suffix) => {
                let has_suffix = path.extension().is_some_and(|extension| extension == suffix);
                let to = if has_suffix { path.with_extension("") } else { path.with_added_extension("raw") };
                format!("{program} {from} > {}", quoted(&to))
            }
        }
    }
}

/// `path` as a word of a shell's command line.
fn quoted(path: &Path) -> Cow<'_, str> {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@%=".contains(c);
    if !text.is_empty() && !text.starts_with('-') && text.chars().all(plain) {
        text
    } else if text.starts_with('-') {
        format!("'./{}'", text.replace('\'', r"'\''")).into()
    } else {
        format!("'{}'", text.replace('\'', r"'\''")).into()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn format_of(content: &[u8]) -> Option<ForeignFormat> {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(content, 0).unwrap();
        ForeignFormat::of(&file, content.len() as u64)
    }

    fn padded(offset: usize, magic: &[u8]) -> Vec<u8> {
        let mut content = vec![0; 4096];
        content[offset..offset + magic.len()].copy_from_slice(magic);
        content
    }

    #[rstest]
    #[case(0, b"QFI\xfb\0\0\0\x01", "QCOW", "qemu-img convert -f qcow -O raw d.img d.raw")]
    #[case(0, b"QFI\xfb\0\0\0\x02", "QCOW2", "qemu-img convert -f qcow2 -O raw d.img d.raw")]
    #[case(0, b"QFI\xfb\0\0\0\x03", "QCOW2", "qemu-img convert -f qcow2 -O raw d.img d.raw")]
    #[case(0, b"QED\0", "QED", "qemu-img convert -f qed -O raw d.img d.raw")]
    #[case(0, b"KDMV\x01\0\0\0", "VMDK", "qemu-img convert -f vmdk -O raw d.img d.raw")]
    #[case(0, b"COWD", "VMDK", "qemu-img convert -f vmdk -O raw d.img d.raw")]
    #[case(0, b"# Disk DescriptorFile\nversion=1", "VMDK", "qemu-img convert -f vmdk -O raw d.img d.raw")]
    #[case(0, b"conectix", "VHD", "qemu-img convert -f vpc -O raw d.img d.raw")]
    #[case(4096 - 512, b"conectix", "VHD", "qemu-img convert -f vpc -O raw d.img d.raw")]
    #[case(0, b"vhdxfile", "VHDX", "qemu-img convert -f vhdx -O raw d.img d.raw")]
    #[case(64, b"\x7f\x10\xda\xbe", "VDI", "qemu-img convert -f vdi -O raw d.img d.raw")]
    #[case(0, b"\x1f\x8b\x08\0", "gzip-compressed", "gzip -dc d.img > d.img.raw")]
    #[case(0, b"\xfd7zXZ\0", "xz-compressed", "xz -dc d.img > d.img.raw")]
    #[case(0, b"\x28\xb5\x2f\xfd", "Zstandard-compressed", "zstd -dc d.img > d.img.raw")]
    #[case(0, b"BZh91AY&SY", "bzip2-compressed", "bzip2 -dc d.img > d.img.raw")]
    #[case(0, b"\x04\x22\x4d\x18", "LZ4-compressed", "lz4 -dc d.img > d.img.raw")]
    #[case(0, b"PK\x03\x04", "ZIP-compressed", "unzip -p d.img > d.img.raw")]
    fn foreign_formats_are_recognized_and_can_be_converted(
        #[case] offset: usize,
        #[case] magic: &[u8],
        #[case] name: &str,
        #[case] command: &str,
    ) {
        let format = format_of(&padded(offset, magic)).unwrap();
        assert_eq!(format.name, name);
        assert_eq!(format.conversion(Path::new("d.img")), command);
    }

    #[rstest]
    #[case(&padded(510, b"\x55\xaa"))]
    #[case(&padded(0x438, b"\x53\xef"))]
    #[case(&padded(1, b"QFI\xfb"))]
    #[case(&padded(4096 - 511, b"conectix"))]
    #[case(b"")]
    #[case(b"QFI")]
    fn other_content_is_raw(#[case] content: &[u8]) {
        assert_eq!(format_of(content), None);
    }

    /// What the programs themselves make is recognized, and their command makes the original of it.
    #[test]
    fn the_commands_work() {
        let directory = tempfile::tempdir().unwrap();
        let run = |command: &str| {
            let output =
                std::process::Command::new("sh").args(["-c", command]).current_dir(&directory).output();
            output.is_ok_and(|output| output.status.success())
        };
        let original: Vec<u8> =
            (0..1_u32 << 20).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        std::fs::write(directory.path().join("disk"), &original).unwrap();
        for (make, file) in [
            ("gzip -k disk", "disk.gz"),
            ("xz -k disk", "disk.xz"),
            ("zstd -q disk", "disk.zst"),
            ("bzip2 -k disk", "disk.bz2"),
            ("zip -q disk.zip disk", "disk.zip"),
            ("qemu-img convert -O qcow2 disk disk.qcow2", "disk.qcow2"),
            ("qemu-img convert -O vmdk disk disk.vmdk", "disk.vmdk"),
            ("qemu-img convert -O vdi disk disk.vdi", "disk.vdi"),
            ("qemu-img convert -O vhdx disk disk.vhdx", "disk.vhdx"),
        ] {
            if !run(make) {
                eprintln!("skipped: `{make}` does not work here");
                continue;
            }
            let made = File::open(directory.path().join(file)).unwrap();
            let format = ForeignFormat::of(&made, made.metadata().unwrap().len()).unwrap();
            let command = format.conversion(Path::new(file));
            let to = command.rsplit(' ').next().unwrap();
            let _ = std::fs::rename(directory.path().join("disk"), directory.path().join("original"));
            assert!(run(&command), "{command}");
            let raw = std::fs::read(directory.path().join(to)).unwrap();
            assert!(raw == original, "{command}");
            std::fs::rename(directory.path().join("original"), directory.path().join("disk")).unwrap();
        }
    }

    #[rstest]
    #[case("a.qcow2", "qemu-img convert -f qcow2 -O raw a.qcow2 a.raw")]
    #[case("a.raw", "qemu-img convert -f qcow2 -O raw a.raw a.raw.raw")]
    #[case("my disk's", r"qemu-img convert -f qcow2 -O raw 'my disk'\''s' 'my disk'\''s.raw'")]
    #[case("-a", "qemu-img convert -f qcow2 -O raw './-a' './-a.raw'")]
    fn paths_are_words_of_the_command(#[case] path: &str, #[case] command: &str) {
        let format = ForeignFormat { name: "QCOW2", converter: Converter::QemuImg("qcow2") };
        assert_eq!(format.conversion(Path::new(path)), command);
    }

    #[test]
    fn the_suffix_of_a_compression_goes() {
        let format = format_of(b"\x1f\x8b\x08").unwrap();
        assert_eq!(format.conversion(Path::new("/a/disk.img.gz")), "gzip -dc /a/disk.img.gz > /a/disk.img");
    }
}
