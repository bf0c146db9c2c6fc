//! Recipes: what a layer's tar stream has besides the data of files, so that the stream can be made again, byte for
//! byte, from the layer's EROFS image.
//!
//! A recipe is a gzip stream of records, each a byte that says what follows (numbers are little-endian):
//!
//! | byte | then | means |
//! | --- | --- | --- |
//! | 0 | u32 length, bytes | these bytes |
//! | 1 | u64 length, u64 offset | bytes of the image |
//! | 2 | u64 length | the end of the stream, which has this many bytes |

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;

use erofs::Extent;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

const BYTES: u8 = 0;
const EXTENT: u8 = 1;
const END: u8 = 2;
/// The most bytes of a record.
const MAX_BYTES: usize = 64 << 10;

/// Writes a recipe while its stream is read.
pub(crate) struct RecipeWriter {
    out: GzEncoder<BufWriter<File>>,
    /// Bytes of the stream that are not written yet.
    bytes: Vec<u8>,
    /// The bytes that follow in the stream and are in the image.
    in_image: u64,
    length: u64,
    /// Writing failed.
    error: Option<io::Error>,
}

impl RecipeWriter {
    /// Writes to `out`, an empty file.
    pub(crate) fn new(out: File) -> Self {
        Self {
            out: GzEncoder::new(BufWriter::new(out), Compression::default()),
            bytes: Vec::with_capacity(MAX_BYTES),
            in_image: 0,
            length: 0,
            error: None,
        }
    }

    /// The next bytes that are read are at `extent` of the image.
    pub(crate) fn extent(&mut self, extent: Extent) {
        let Extent { length, at } = extent;
        if length == 0 {
            return;
        }
        let written = self.write_bytes().and_then(|()| {
            self.out.write_all(&[EXTENT])?;
            self.out.write_all(&length.to_le_bytes())?;
            self.out.write_all(&at.to_le_bytes())
        });
        self.keep(written);
        self.in_image = length;
    }

    fn read(&mut self, mut bytes: &[u8]) {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.length = self.length.saturating_add(length);
        let skipped = self.in_image.min(length);
        self.in_image -= skipped;
        bytes = usize::try_from(skipped).ok().and_then(|skipped| bytes.get(skipped..)).unwrap_or_default();
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(MAX_BYTES - self.bytes.len()));
            self.bytes.extend_from_slice(now);
            bytes = later;
            if self.bytes.len() == MAX_BYTES {
                let written = self.write_bytes();
                self.keep(written);
            }
        }
    }

    fn write_bytes(&mut self) -> io::Result<()> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.out.write_all(&[BYTES])?;
        self.out.write_all(&length.to_le_bytes())?;
        self.out.write_all(&self.bytes)?;
        self.bytes.clear();
        Ok(())
    }

    fn keep(&mut self, result: io::Result<()>) {
        if let Err(error) = result {
            self.bytes.clear();
            self.error.get_or_insert(error);
        }
    }

    /// Ends the recipe. Returns its file and the length of the stream.
    ///
    /// # Errors
    ///
    /// The first error of all writes.
    pub(crate) fn finish(mut self) -> io::Result<(File, u64)> {
        let written = self.write_bytes();
        self.keep(written);
        if let Some(error) = self.error {
            return Err(error);
        }
        self.out.write_all(&[END])?;
        self.out.write_all(&self.length.to_le_bytes())?;
        let file = self.out.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok((file, self.length))
    }
}

/// Passes on what it reads, and shows it to the writer of a recipe.
pub(crate) struct Recorded<'a, R> {
    pub(crate) input: R,
    pub(crate) recipe: &'a RefCell<RecipeWriter>,
}

impl<R: Read> Read for Recorded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.recipe.borrow_mut().read(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }
}

/// A stream made again from a recipe and an image.
pub(crate) struct Rebuilt {
    recipe: GzDecoder<BufReader<File>>,
    image: File,
    next: Piece,
    length: u64,
}

#[derive(Clone, Copy)]
enum Piece {
    Bytes { left: u64 },
    Extent { left: u64, at: u64 },
    End,
}

impl Rebuilt {
    pub(crate) fn new(recipe: File, image: File) -> Self {
        let recipe = GzDecoder::new(BufReader::new(recipe));
        Self { recipe, image, next: Piece::Bytes { left: 0 }, length: 0 }
    }

    fn next_piece(&mut self) -> io::Result<Piece> {
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the layer's recipe is damaged");
        let mut kind = [0; 1];
        self.recipe.read_exact(&mut kind)?;
        match kind {
            [BYTES] => {
                let mut length = [0; 4];
                self.recipe.read_exact(&mut length)?;
                Ok(Piece::Bytes { left: u32::from_le_bytes(length).into() })
            }
            [EXTENT] => {
                let left = self.number()?;
                Ok(Piece::Extent { left, at: self.number()? })
            }
            [END] if self.number()? == self.length => Ok(Piece::End),
            _ => Err(damaged()),
        }
    }

    fn number(&mut self) -> io::Result<u64> {
        let mut number = [0; 8];
        self.recipe.read_exact(&mut number)?;
        Ok(u64::from_le_bytes(number))
    }
}

impl Read for Rebuilt {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while let Piece::Bytes { left: 0 } | Piece::Extent { left: 0, .. } = self.next {
            self.next = self.next_piece()?;
        }
        let short = |left: u64| usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let count = match self.next {
            Piece::End => return Ok(0),
            Piece::Bytes { left } => {
                let most = short(left);
                self.recipe.read(buffer.get_mut(..most).unwrap_or_default())?
            }
            Piece::Extent { left, at } => {
                let most = short(left);
                self.image.read_at(buffer.get_mut(..most).unwrap_or_default(), at)?
            }
        };
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let read = u64::try_from(count).unwrap_or(u64::MAX);
        self.length += read;
        self.next = match self.next {
            Piece::Bytes { left } => Piece::Bytes { left: left - read },
            Piece::Extent { left, at } => Piece::Extent { left: left - read, at: at + read },
            Piece::End => Piece::End,
        };
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Seek;

    use proptest::prelude::*;

    use super::*;

    /// Stores the stream and makes it again.
    fn round_trip(tar: &[u8]) -> (Vec<u8>, u64) {
        let image = tempfile::tempfile().unwrap();
        let recipe = RefCell::new(RecipeWriter::new(tempfile::tempfile().unwrap()));
        let mut recorded = Recorded { input: tar, recipe: &recipe };
        let mut observe = |extent| recipe.borrow_mut().extent(extent);
        erofs::write_layer_observed(&mut recorded, &image, [0; 16], &erofs::Limits::default(), &mut observe)
            .unwrap();
        io::copy(&mut recorded, &mut io::sink()).unwrap();
        let (mut recipe, length) = recipe.into_inner().finish().unwrap();
        assert_eq!(length, u64::try_from(tar.len()).unwrap());
        let size = recipe.metadata().unwrap().len();
        recipe.rewind().unwrap();
        let mut rebuilt = Vec::new();
        Rebuilt::new(recipe, image).read_to_end(&mut rebuilt).unwrap();
        (rebuilt, size)
    }

    fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(u64::try_from(content.len()).unwrap());
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            builder.append_data(&mut header, name, &content[..]).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn a_stream_is_made_again_with_whatever_follows_it() {
        let files = [
            ("a".to_owned(), vec![1; 5000]),
            ("b".repeat(200), Vec::new()),
            ("c/d".to_owned(), b"small".to_vec()),
            ("zeros".to_owned(), vec![0; 3 << 20]),
            (".wh.a".to_owned(), b"data of a whiteout".to_vec()),
        ];
        let mut tar = archive(&files);
        tar.extend_from_slice(&[0; 10240]);
        tar.extend_from_slice(&vec![7; 200_000]);
        let (rebuilt, size) = round_trip(&tar);
        assert!(rebuilt == tar);
        assert!(size < 2000, "{size} bytes");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn any_archive_is_made_again(
            files in prop::collection::vec(
                ("(d[a-c]?/){0,2}f[a-c]{1,120}", prop::collection::vec(any::<u8>(), 0..9000)), 0..12),
            tail in prop::collection::vec(any::<u8>(), 0..3000),
        ) {

            let mut tar = archive(&files);
            tar.extend(tail);
            prop_assert!(round_trip(&tar).0 == tar);
        }
    }
}
