//! Streams of files in pieces, as an agent or a host sends them: what was written is read, and noise is an error.

#![no_main]

use std::io::{Read, Write};

use agent_protocol::{PieceReader, PieceWriter};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Vec<Vec<u8>>, u16, Vec<u8>)| {
    let (parts, repeated, noise) = input;
    let mut writer = PieceWriter::new(Vec::new());
    let mut sent = Vec::new();
    for part in &parts {
        // More than fits into a piece, now and then.
        let part = part.repeat(1 + usize::from(repeated) / 16);
        writer.write_all(&part).expect("memory takes all");
        sent.extend(part);
        if repeated % 3 == 0 {
            writer.flush().expect("memory takes all");
        }
        if sent.len() > 1 << 20 {
            break;
        }
    }
    let mut wire = writer.finish().expect("memory takes all");
    wire.extend(&noise);
    let mut reader = PieceReader::new(&wire[..]);
    let mut received = Vec::new();
    reader.read_to_end(&mut received).expect("it is a stream");
    assert!(received == sent && reader.has_ended());
    assert_eq!(reader.into_inner(), noise);
    let mut received = Vec::new();
    let mut reader = PieceReader::new(&noise[..]);
    let result = reader.read_to_end(&mut received);
    assert!(received.len() <= noise.len() && (result.is_err() || reader.has_ended()));
});
