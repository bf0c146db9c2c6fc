//! Blobs of a registry: downloaded once, resumed where they were interrupted.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use ureq::http::{Method, StatusCode};

use super::endpoint::Endpoint;
use super::http::{Answer, Call};
use super::{Client, RegistryError};
use crate::digest::Digest;
use crate::store::{BlobInfo, FileLock, Session, StoreError, io_error};

/// How often a download is tried anew after it was interrupted with little progress, which is 1/32 of the blob.
const MAX_FAILURES: u32 = 4;
/// Beside five minutes, a blob may take as long as this many bytes a second would.
const SLOWEST: u64 = 8 << 10;
/// What is read at once.
const CHUNK: usize = 128 << 10;

/// A blob that is being downloaded. Others who want it wait for this.
pub(super) struct Partial {
    path: PathBuf,
    lock: FileLock,
}

impl Partial {
    /// Waits until no other process downloads this blob.
    pub(super) fn lock(session: &Session<'_>, digest: Digest) -> Result<Self, StoreError> {
        let path = session.store.root().join("partial").join(digest.hex());
        let lock = FileLock::exclusive(&path).map_err(io_error("lock", &path))?;
        Ok(Self { path, lock })
    }

    /// Its file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the file, which is not needed any longer.
    pub(super) fn remove(self) -> Result<(), StoreError> {
        // Others who wait for the lock find that the file is not the same.
        fs::remove_file(&self.path).map_err(io_error("remove", self.path.clone()))
    }
}

/// How a part of a download ended.
enum Part {
    Done,
    /// The connection ended after some bytes.
    Interrupted(RegistryError),
}

/// What a download needs besides the blob.
pub(super) struct Download<'a> {
    pub(super) client: &'a Client,
    pub(super) endpoint: &'a Endpoint,
    /// Set when it should be given up.
    pub(super) is_given_up: &'a AtomicBool,
    /// Called with how many bytes are there.
    pub(super) progress: &'a dyn Fn(u64),
}

impl Download<'_> {
    /// Downloads the rest of a blob, and verifies it. What is there when this fails is there for the next attempt.
    pub(super) fn run(&self, partial: &mut Partial, blob: &BlobInfo) -> Result<(), RegistryError> {
        let path = partial.path.clone();
        let failed = |action| io_error(action, path.clone());
        let deadline = Instant::now() + Duration::from_secs(300 + blob.size / SLOWEST);
        let mut hasher = Sha256::new();
        let mut position = self.hash_existing(partial, blob, &mut hasher).map_err(failed("read"))?;
        let mut is_resumed = position > 0;
        let mut failures = 0;
        loop {
            let before = position;
            let part = if position == blob.size {
                Part::Done
            } else {
                self.part(partial, blob, &mut hasher, &mut position, deadline)?
            };
            match part {
                Part::Done => {
                    let found = Digest::from_bytes(hasher.finalize_reset().into());
                    if found == blob.digest {
                        return Ok(());
                    }
                    partial.lock.file().set_len(0).map_err(failed("write"))?;
                    if !is_resumed {
                        let error = StoreError::Digest { what: "blob", expected: blob.digest, found };
                        return Err(error.into());
                    }
                    // What was there before may have been the damaged part.
                    is_resumed = false;
                    position = 0;
                }
                Part::Interrupted(error) => {
                    let is_progress = position.saturating_sub(before) > blob.size / 32;
                    failures = if is_progress { 1 } else { failures + 1 };
                    if failures > MAX_FAILURES || Instant::now() > deadline {
                        return Err(error);
                    }
                    is_resumed |= position > 0;
                    self.pause(failures)?;
                }
            }
        }
    }

    /// Hashes what is there of the blob, and says how much that is.
    fn hash_existing(
        &self,
        partial: &mut Partial,
        blob: &BlobInfo,
        hasher: &mut Sha256,
    ) -> std::io::Result<u64> {
        let file = partial.lock.file();
        if file.metadata()?.len() > blob.size {
            file.set_len(0)?;
        }
        file.rewind()?;
        let mut buffer = vec![0; CHUNK];
        let mut position = 0;
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(position),
                count => {
                    hasher.update(buffer.get(..count).unwrap_or_default());
                    position += u64::try_from(count).unwrap_or(u64::MAX);
                }
            }
        }
    }

    /// One request for what is missing.
    fn part(
        &self,
        partial: &mut Partial,
        blob: &BlobInfo,
        hasher: &mut Sha256,
        position: &mut u64,
        deadline: Instant,
    ) -> Result<Part, RegistryError> {
        let path = partial.path.clone();
        let failed = |action| io_error(action, path.clone());
        let mut call = Call::new(Method::GET, self.endpoint.url(&format!("blobs/{}", blob.digest)));
        if *position > 0 {
            call = call.header("range", format!("bytes={position}-"));
        }
        let url = call.url.to_string();
        let answer = match self.client.call(self.endpoint, call) {
            Err(error @ (RegistryError::Request { .. } | RegistryError::Read { .. })) => {
                return Ok(Part::Interrupted(error));
            }
            answer => answer?,
        };
        let starts_anew = match answer.status {
            StatusCode::OK => true,
            StatusCode::PARTIAL_CONTENT => !starts_at(&answer, *position),
            StatusCode::RANGE_NOT_SATISFIABLE => true,
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                return Ok(Part::Interrupted(self.endpoint.error(answer, "blob")));
            }
            _ => return Err(self.endpoint.error(answer, &format!("blob {}", blob.digest))),
        };
        let file = partial.lock.file();
        if starts_anew {
            file.set_len(0).map_err(failed("write"))?;
            hasher.reset();
            *position = 0;
        }
        if answer.status != StatusCode::OK && starts_anew {
            let reason = "it is not the range that was asked for".to_owned();
            return Ok(Part::Interrupted(RegistryError::Invalid { url, reason }));
        }
        file.seek(SeekFrom::Start(*position)).map_err(failed("write"))?;
        let mut reader = answer.into_reader();
        let mut buffer = vec![0; CHUNK];
        loop {
            if self.is_given_up.load(Ordering::Relaxed) {
                return Err(RegistryError::GivenUp);
            }
            let interrupted = |source| Part::Interrupted(RegistryError::Read { url: url.clone(), source });
            if Instant::now() > deadline {
                return Ok(interrupted(std::io::ErrorKind::TimedOut.into()));
            }
            let count = match reader.read(&mut buffer) {
                Ok(0) if *position == blob.size => return Ok(Part::Done),
                Ok(0) => return Ok(interrupted(std::io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => count,
                Err(error) => return Ok(interrupted(error)),
            };
            let bytes = buffer.get(..count).unwrap_or_default();
            let end = *position + u64::try_from(count).unwrap_or(u64::MAX);
            if end > blob.size {
                return Err(RegistryError::TooLong { url, size: blob.size });
            }
            file.write_all(bytes).map_err(failed("write"))?;
            hasher.update(bytes);
            *position = end;
            (self.progress)(end);
        }
    }

    /// Waits before the next attempt, for a fifth of a second and then longer.
    fn pause(&self, failures: u32) -> Result<(), RegistryError> {
        let end = Instant::now() + Duration::from_millis(100 << failures.min(6));
        while Instant::now() < end {
            if self.is_given_up.load(Ordering::Relaxed) {
                return Err(RegistryError::GivenUp);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// Whether a partial answer begins at this byte (RFC 9110, 14.4).
fn starts_at(answer: &Answer, position: u64) -> bool {
    let range = answer.header("content-range").and_then(|range| range.strip_prefix("bytes "));
    range.and_then(|range| range.split_once('-')).is_some_and(|(start, _)| start.parse() == Ok(position))
}
