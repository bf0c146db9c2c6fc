//! Compressed streams: gzip (RFC 1952) and Zstandard (RFC 8878), of several members or frames each.

use std::io::{self, BufRead, BufReader, Cursor, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// What is read from a source at once.
const BUFFER: usize = 128 << 10;

/// How a stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// As the first bytes of a stream, up to 4 of them, show it.
    fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// What a stream contains, whatever it is compressed with: no tar stream begins as a compressed one does. The result
/// says what was found.
///
/// The window of a Zstandard frame may have up to 128 MiB.
pub(crate) fn decompressed<'a>(mut input: impl Read + 'a) -> io::Result<(Compression, Box<dyn Read + 'a>)> {
    let mut start = Vec::with_capacity(4);
    input.by_ref().take(4).read_to_end(&mut start)?;
    let compression = Compression::of(&start);
    let whole = BufReader::with_capacity(BUFFER, Cursor::new(start).chain(input));
    let content: Box<dyn Read + 'a> = match compression {
        Compression::None => Box::new(whole),
        Compression::Gzip => Box::new(MultiGzDecoder::new(whole)),
        Compression::Zstd => Box::new(Zstd::new(whole)),
    };
    Ok((compression, content))
}

/// All frames of a Zstandard stream.
struct Zstd<R> {
    input: R,
    decoder: FrameDecoder,
    is_in_frame: bool,
}

impl<R: BufRead> Zstd<R> {
    fn new(input: R) -> Self {
        Self { input, decoder: FrameDecoder::new(), is_in_frame: false }
    }

    /// Begins the next frame; false at the end of the stream.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !self.input.fill_buf()?.is_empty() {
            match self.decoder.init(&mut self.input) {
                Ok(()) => {
                    self.is_in_frame = true;
                    return Ok(true);
                }
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let skipped = io::copy(&mut self.input.by_ref().take(length.into()), &mut io::sink())?;
                    if skipped < u64::from(length) {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error.to_string())),
            }
        }
        Ok(false)
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.is_in_frame && !self.next_frame()? {
                return Ok(0);
            }
            if self.decoder.can_collect() > 0 {
                return self.decoder.read(buffer);
            }
            if self.decoder.is_finished() {
                self.is_in_frame = false;
                continue;
            }
            let one = BlockDecodingStrategy::UptoBlocks(1);
            let decoded = self.decoder.decode_blocks(&mut self.input, one);
            decoded.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    fn read(bytes: &[u8]) -> io::Result<(Compression, Vec<u8>)> {
        let (compression, mut content) = decompressed(bytes)?;
        let mut read = Vec::new();
        content.read_to_end(&mut read)?;
        Ok((compression, read))
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        let mut child = Command::new("zstd")
            .args(["-q", "-c"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("zstd: tools/need zstd");
        let mut input = child.stdin.take().unwrap();
        let bytes = bytes.to_vec();
        let writer = std::thread::spawn(move || input.write_all(&bytes).unwrap());
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        output.stdout
    }

    fn sample() -> Vec<u8> {
        (0..600_000_u32).flat_map(|number| (number / 3).wrapping_mul(2_654_435_761).to_le_bytes()).collect()
    }

    #[test]
    fn every_compression_is_recognized() {
        let sample = sample();
        assert_eq!(read(&sample).unwrap(), (Compression::None, sample.clone()));
        assert_eq!(read(&gzip(&sample)).unwrap(), (Compression::Gzip, sample.clone()));
        assert_eq!(read(&zstd(&sample)).unwrap(), (Compression::Zstd, sample));
        assert_eq!(read(b"").unwrap(), (Compression::None, Vec::new()));
        assert_eq!(read(b"ab").unwrap(), (Compression::None, b"ab".to_vec()));
    }

    #[test]
    fn members_and_frames_follow_each_other() {
        let both = |bytes: Vec<u8>, more: Vec<u8>| [bytes, more].concat();
        assert_eq!(read(&both(gzip(b"one "), gzip(b"two"))).unwrap().1, b"one two");
        // As zstd:chunked layers have it: a frame of other data between.
        let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        let frames = [zstd(b"one "), skipped.clone(), zstd(b""), zstd(b"two"), skipped].concat();
        assert_eq!(read(&frames).unwrap().1, b"one two");
    }

    #[test]
    fn what_ends_early_is_an_error() {
        for whole in [gzip(&sample()), zstd(&sample())] {
            for length in [5, 17, whole.len() / 2, whole.len() - 1] {
                assert!(read(&whole[..length]).is_err(), "{length} of {}", whole.len());
            }
        }
        assert!(read(&[0x50, 0x2a, 0x4d, 0x18, 9, 0, 0, 0, 1]).is_err());
    }

    proptest::proptest! {
        #[test]
        fn damaged_streams_are_errors_or_something_else(
            at in 0_usize..2000, byte: u8, is_zstd: bool,
        ) {
            static SAMPLES: std::sync::LazyLock<[Vec<u8>; 2]> =
                std::sync::LazyLock::new(|| [gzip(&sample()[..8000]), zstd(&sample()[..8000])]);
            let mut bytes = SAMPLES[usize::from(is_zstd)].clone();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = read(&bytes);
        }
    }
}
