//! Archives of any kind.

use std::io::{self, Read};

use super::spool::Spool;
use super::{LoadError, Loaded, docker, layout};
use crate::compression::decompressed;
use crate::store::Session;

/// Loads all images of an archive. Of one that is of both kinds, docker's manifest counts: it names the images as
/// docker does, and has the layers of one platform.
pub(super) fn load(session: &Session<'_>, mut input: impl Read) -> Result<Vec<Loaded>, LoadError> {
    let (_, content) = decompressed(&mut input).map_err(LoadError::Read)?;
    let spool = match Spool::read(session, content) {
        // The first header is not one.
        Err(LoadError::Archive(erofs::StreamError::NotTar)) => return Err(LoadError::NotAnImage),
        spool => spool?,
    };
    // An archive ends before its stream does: who writes that sees no error.
    io::copy(&mut input, &mut io::sink()).map_err(LoadError::Read)?;
    if let Some((_, manifest)) = spool.named("manifest.json") {
        let bytes = manifest.document(|| "manifest.json".to_owned())?;
        return docker::load(session, &spool, &bytes);
    }
    match spool.named("index.json") {
        Some((digest, index)) if spool.named("oci-layout").is_some() => {
            let bytes = index.document(|| "index.json".to_owned())?;
            layout::load(session, &spool, digest, &bytes)
        }
        _ if spool.named("repositories").is_some() => Err(LoadError::TooOld),
        _ => Err(LoadError::NotAnImage),
    }
}
