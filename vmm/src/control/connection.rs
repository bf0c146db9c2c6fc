//! A client's connection.

use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::request::{self, Parsed, Request};
use super::response::{Framing, Response};

/// How long a client may take to send a request that it has begun, or to read an answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may be open with nothing said.
const IDLE: Duration = Duration::from_secs(60);
/// What is read in a turn: it bounds the requests that are answered before others have theirs.
const TURN: usize = 4096;

/// The most files that come with a request.
const MAX_FILES: usize = 3;

/// What has to happen next on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The client sends more.
    Read,
    /// The client reads what there is for it.
    Write,
    /// The answer to the last request is made elsewhere.
    Answer,
    /// Nothing: it is over.
    Close,
}

/// What became of a request.
pub(super) enum Answer {
    /// This.
    Ready(Response),
    /// It is made elsewhere and comes with [`Connection::answer`].
    Later,
}

/// What serves a request, with the files that came with it.
pub(super) type Serve<'a> = &'a mut dyn FnMut(&Request<'_>, Vec<OwnedFd>) -> Answer;

/// A connection: what came in and is not yet a request, what has to go out, and how long all that takes.
pub(super) struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    /// Files that came with what is in `input`.
    files: Vec<OwnedFd>,
    output: Vec<u8>,
    /// Nothing is read any more; it ends when the output is out.
    ends: bool,
    /// `100 Continue` was sent for the request that is coming in.
    continued: bool,
    /// The answer to a request is awaited, which is to be written so.
    awaits: Option<Framing>,
    /// Since when nothing has happened, or since when the request that is coming in has been.
    since: Instant,
}

impl Connection {
    pub(super) fn new(stream: UnixStream, now: Instant) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            input: Vec::new(),
            files: Vec::new(),
            output: Vec::new(),
            ends: false,
            continued: false,
            awaits: None,
            since: now,
        })
    }

    pub(super) fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// Whether the client has said nothing that is not answered.
    pub(super) fn is_idle(&self) -> bool {
        self.input.is_empty() && self.output.is_empty() && self.awaits.is_none()
    }

    /// Since when it is as it is.
    pub(super) fn since(&self) -> Instant {
        self.since
    }

    /// Whether the client has taken longer than it may.
    pub(super) fn is_late(&self, now: Instant) -> bool {
        let timeout = if self.is_idle() { IDLE } else { TIMEOUT };
        self.awaits.is_none() && now.duration_since(self.since) > timeout
    }

    /// Takes what the client has sent and hands each request to `serve`.
    pub(super) fn readable(&mut self, now: Instant, serve: Serve<'_>) -> Next {
        let mut buffer = [0; TURN];
        match self.receive(&mut buffer) {
            // A client that has shut down its writing side may still read answers.
            Ok(0) => self.ends = true,
            Ok(length) => {
                if self.input.is_empty() {
                    self.since = now;
                }
                self.input.extend_from_slice(buffer.get(..length).unwrap_or_default());
            }
            Err(error) if is_temporary(&error) => {}
            Err(_) => return Next::Close,
        }
        self.advance(now, serve)
    }

    /// Reads what the client has sent, and keeps the files that come with it, as long as they are not too many.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(buffer)];
        let message = recvmsg(&self.stream, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        for sent in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = sent {
                // The others are closed.
                let room = MAX_FILES.saturating_sub(self.files.len());
                self.files.extend(files.take(room));
            }
        }
        Ok(message.bytes)
    }

    /// The client reads again.
    pub(super) fn writable(&mut self, now: Instant, serve: Serve<'_>) -> Next {
        self.advance(now, serve)
    }

    /// Brings the answer that was awaited.
    pub(super) fn answer(&mut self, response: &Response, now: Instant, serve: Serve<'_>) -> Next {
        if let Some(framing) = self.awaits.take() {
            self.since = now;
            self.put(response, framing);
        }
        self.advance(now, serve)
    }

    fn put(&mut self, response: &Response, framing: Framing) {
        self.ends |= framing.last;
        response.write(&mut self.output, framing);
    }

    /// Serves requests as long as there are whole ones and the client reads the answers.
    fn advance(&mut self, now: Instant, serve: Serve<'_>) -> Next {
        loop {
            match self.flush(now) {
                Ok(true) => {}
                Ok(false) => return Next::Write,
                Err(_) => return Next::Close,
            }
            if self.awaits.is_some() {
                return Next::Answer;
            }
            if !self.serve_one(now, serve) {
                // What was said last may still have to go out.
                return match self.flush(now) {
                    Ok(false) => Next::Write,
                    Ok(true) if !self.ends => Next::Read,
                    _ => Next::Close,
                };
            }
        }
    }

    /// Serves the next request; returns whether there may be another.
    fn serve_one(&mut self, now: Instant, serve: Serve<'_>) -> bool {
        if self.input.is_empty() {
            return false;
        }
        let (answer, framing, length) = match request::parse(&self.input) {
            Parsed::Whole(request, length) => {
                let files = std::mem::take(&mut self.files);
                (serve(&request, files), request.framing, length)
            }
            Parsed::Part { expects_continue } => {
                if expects_continue && !self.continued {
                    self.continued = true;
                    self.output.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                }
                return false;
            }
            Parsed::Bad(status, message) => {
                // Where the next request would begin is not known.
                let framing = Framing { last: true, ..Framing::default() };
                (Answer::Ready(Response::fault(status, &message)), framing, self.input.len())
            }
        };
        self.input.drain(..length);
        self.continued = false;
        self.since = now;
        if framing.last {
            self.input.clear();
        }
        match answer {
            Answer::Ready(response) => self.put(&response, framing),
            Answer::Later => self.awaits = Some(framing),
        }
        true
    }

    /// Writes what the client takes; returns whether that was all.
    fn flush(&mut self, now: Instant) -> io::Result<bool> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => {
                    self.output.drain(..length);
                    self.since = now;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
