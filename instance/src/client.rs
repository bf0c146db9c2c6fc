//! The client's end of the control socket.

use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, connect, sendmsg, socket_with,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::api::Fault;

/// A VM answers within microseconds; a pause waits for a guest's devices. No request takes longer than this.
const DEADLINE: Duration = Duration::from_secs(15);
/// More than any answer has.
const MAX_ANSWER: usize = 4 << 20;
const MAX_FIELDS: usize = 32;
/// The most files that go with a request.
const MAX_FILES: usize = 3;

/// Why a VM could not be asked, or did not do what it was asked.
#[derive(Debug, Error)]
pub enum ClientError {
    /// It can't be reached.
    #[error("it does not answer on its control socket")]
    Io(#[from] io::Error),
    /// What it says is not HTTP, or not what was asked for.
    #[error("unexpected answer on its control socket: {0}")]
    Answer(String),
    /// It says no.
    #[error("{0}")]
    Fault(String),
}

/// Connects to the socket at `path`, and writes to it, for `limit` at the most.
///
/// # Errors
///
/// Those of the system calls; [`io::ErrorKind::WouldBlock`] where the limit has passed.
pub fn connect_within(path: &Path, limit: Duration) -> io::Result<UnixStream> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // It also holds for connecting, which waits where a process that is stopped has its queue full (unix(7)).
    set_socket_timeout(&socket, Timeout::Send, Some(limit))?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

/// A connection to a VM's control socket.
pub struct Client {
    stream: UnixStream,
    /// How long a request may take.
    limit: Duration,
    /// What came in behind the last answer.
    input: Vec<u8>,
}

impl Client {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    ///
    /// [`ClientError::Io`].
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        Self::connect_with_limit(path, DEADLINE)
    }

    /// The same for a client that waits no longer than `limit` for the connection, and for each answer.
    ///
    /// # Errors
    ///
    /// [`ClientError::Io`].
    pub fn connect_with_limit(path: &Path, limit: Duration) -> Result<Self, ClientError> {
        Ok(Self { stream: connect_within(path, limit)?, limit, input: Vec::new() })
    }

    /// Asks for a resource.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, ClientError> {
        let body = self.request("GET", path, &[])?;
        serde_json::from_slice(&body).map_err(|error| ClientError::Answer(error.to_string()))
    }

    /// Sends `body` to a resource.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn send(&mut self, method: &str, path: &str, body: &impl Serialize) -> Result<(), ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Answer(error.to_string()))?;
        self.request(method, path, &body).map(drop)
    }

    /// The same with open files, which go to the VM.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn send_with_files(
        &mut self,
        (method, path): (&str, &str),
        body: &impl Serialize,
        files: &[BorrowedFd<'_>],
    ) -> Result<(), ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Answer(error.to_string()))?;
        self.request_with_files((method, path), &body, files).map(drop)
    }

    fn request(&mut self, method: &str, path: &str, body: &[u8]) -> Result<Vec<u8>, ClientError> {
        self.request_with_files((method, path), body, &[])
    }

    fn request_with_files(
        &mut self,
        (method, path): (&str, &str),
        body: &[u8],
        files: &[BorrowedFd<'_>],
    ) -> Result<Vec<u8>, ClientError> {
        let mut request =
            format!("{method} {path} HTTP/1.1\r\nHost: mvm\r\nContent-Length: {}\r\n\r\n", body.len())
                .into_bytes();
        request.extend_from_slice(body);
        let deadline = Instant::now() + self.limit;
        let sent = self.send_files(&request, files)?;
        self.stream.write_all(request.get(sent..).unwrap_or_default())?;
        let (status, length) = self.read_head(deadline)?;
        while self.input.len() < length {
            self.read_more(deadline)?;
        }
        let body = self.input.drain(..length).collect::<Vec<_>>();
        match status {
            200..300 => Ok(body),
            _ => Err(match serde_json::from_slice::<Fault>(&body) {
                Ok(fault) => ClientError::Fault(fault.fault_message),
                Err(_) => ClientError::Answer(format!("status {status}")),
            }),
        }
    }

    /// Sends `files` with the beginning of `request`, and returns how long that is.
    fn send_files(&self, request: &[u8], files: &[BorrowedFd<'_>]) -> Result<usize, ClientError> {
        if files.is_empty() {
            return Ok(0);
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !ancillary.push(SendAncillaryMessage::ScmRights(files)) {
            return Err(ClientError::Answer("too many files for a request".into()));
        }
        let sent = sendmsg(&self.stream, &[IoSlice::new(request)], &mut ancillary, SendFlags::NOSIGNAL);
        Ok(sent.map_err(io::Error::from)?)
    }

    /// Reads up to the body; returns the status and the length of the body.
    fn read_head(&mut self, deadline: Instant) -> Result<(u16, usize), ClientError> {
        loop {
            if let Some((status, head, length)) = parse_head(&self.input)? {
                self.input.drain(..head);
                return Ok((status, length));
            }
            self.read_more(deadline)?;
        }
    }

    fn read_more(&mut self, deadline: Instant) -> Result<(), ClientError> {
        let mut buffer = [0; 16 << 10];
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::from(io::ErrorKind::TimedOut).into());
        }
        self.stream.set_read_timeout(Some(left))?;
        match self.stream.read(&mut buffer) {
            Ok(0) => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(length) => {
                self.input.extend_from_slice(buffer.get(..length).unwrap_or_default());
                if self.input.len() > MAX_ANSWER { Err(too_long()) } else { Ok(()) }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn too_long() -> ClientError {
    ClientError::Answer("more than 4 MiB".into())
}

/// The status, the length of the head, and that of the body, once the head is whole.
fn parse_head(input: &[u8]) -> Result<Option<(u16, usize, usize)>, ClientError> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let head = match response.parse(input) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(ClientError::Answer(error.to_string())),
    };
    let length = response.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
    let length =
        match length.map(|field| std::str::from_utf8(field.value).ok().and_then(|text| text.parse().ok())) {
            None => 0,
            Some(Some(length)) if length <= MAX_ANSWER => length,
            Some(_) => return Err(too_long()),
        };
    Ok(Some((response.code.unwrap_or(0), head, length)))
}
