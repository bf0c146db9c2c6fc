//! `tar-to-erofs IMAGE < TAR`: makes an EROFS image of an uncompressed tar stream.

use std::error::Error;
use std::fs::File;
use std::io::{copy, sink, stdin};

use erofs::{Limits, merge, write_layer};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: tar-to-erofs IMAGE < TAR")?;
    let out = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    let mut tar = stdin().lock();
    write_layer(&mut tar, &out, [0; 16], &Limits::default())?;
    // What fills its last record: who writes it would end by SIGPIPE.
    copy(&mut tar, &mut sink())?;
    // It is a whole file system by itself if it can be merged.
    merge(&[out], &tempfile::tempfile()?, [0; 16])?;
    Ok(())
}
