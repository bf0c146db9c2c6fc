//! The other end of the socket, byte by byte: a back end that keeps to the protocol, or not.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::lock;

pub(super) const GET_FEATURES: u32 = 1;
pub(super) const SET_FEATURES: u32 = 2;
pub(super) const SET_MEM_TABLE: u32 = 5;
pub(super) const SET_VRING_NUM: u32 = 8;
pub(super) const SET_VRING_ADDR: u32 = 9;
pub(super) const SET_VRING_BASE: u32 = 10;
pub(super) const GET_VRING_BASE: u32 = 11;
pub(super) const SET_VRING_KICK: u32 = 12;
pub(super) const SET_VRING_CALL: u32 = 13;
pub(super) const GET_PROTOCOL_FEATURES: u32 = 15;
pub(super) const SET_PROTOCOL_FEATURES: u32 = 16;
pub(super) const GET_QUEUE_NUM: u32 = 17;
pub(super) const SET_VRING_ENABLE: u32 = 18;

/// VERSION_1, EVENT_IDX, INDIRECT_DESC, the protocol's features; and one of the device type.
pub(super) const FEATURES: u64 = 1 << 32 | 1 << 29 | 1 << 28 | 1 << 30 | 1 << 3;
/// MQ and REPLY_ACK.
const PROTOCOL_FEATURES: u64 = 1 | 1 << 3;
const VERSION: u32 = 1;
const IS_REPLY: u32 = 4;
const NEEDS_REPLY: u32 = 8;

/// A request as it came.
pub(super) struct Message {
    pub(super) request: u32,
    pub(super) flags: u32,
    pub(super) payload: Vec<u8>,
    pub(super) files: Vec<File>,
}

impl Message {
    /// The 32-bit word at `index` of the payload.
    pub(super) fn word(&self, index: usize) -> u32 {
        u32::from_le_bytes(self.payload[index * 4..][..4].try_into().unwrap())
    }

    /// The 64-bit word at byte `offset` of the payload.
    pub(super) fn long(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.payload[offset..][..8].try_into().unwrap())
    }
}

/// What to do about a request.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// What is right.
    Right,
    /// The right header, with this payload.
    Payload(Vec<u8>),
    /// These bytes.
    Bytes(Vec<u8>),
    /// Nothing, though an answer is due.
    Silence,
    /// The end of the connection.
    Close,
}

/// What a back end was asked so far.
pub(super) type Log = Arc<Mutex<Vec<Message>>>;

/// Starts a back end that answers each request as `script` says, until the connection ends.
pub(super) fn back_end(
    mut script: impl FnMut(&Message) -> Answer + Send + 'static,
) -> (UnixStream, Log, JoinHandle<()>) {
    let (ours, mut socket) = UnixStream::pair().unwrap();
    let log = Log::default();
    let seen = Arc::clone(&log);
    let thread = std::thread::spawn(move || {
        while let Some(message) = receive(&mut socket) {
            let answer = script(&message);
            let (request, right) = (message.request, right_answer(&message));
            lock(&seen).push(message);
            let bytes = match answer {
                Answer::Right => right.map(|payload| reply(request, &payload)),
                Answer::Payload(payload) => Some(reply(request, &payload)),
                Answer::Bytes(bytes) => Some(bytes),
                Answer::Silence => None,
                Answer::Close => return,
            };
            // The front end may have had enough of it.
            if bytes.is_some_and(|bytes| socket.write_all(&bytes).is_err()) {
                return;
            }
        }
    });
    (ours, log, thread)
}

fn receive(socket: &mut UnixStream) -> Option<Message> {
    let mut header = [0_u8; 12];
    let mut fds = [-1; 8];
    let iovec = libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: header.len() };
    // SAFETY: the vector is that of a buffer which lives until the call is over.
    let (read, count) = unsafe { socket.recv_with_fds(&mut [iovec], &mut fds) }.ok()?;
    // SAFETY: the descriptors were just received and have no other owner.
    let files = fds[..count].iter().map(|fd| unsafe { File::from_raw_fd(*fd) }).collect();
    let word = |index: usize| u32::from_le_bytes(header[index * 4..][..4].try_into().unwrap());
    if read == 0 {
        return None;
    }
    assert_eq!(read, header.len());
    let mut payload = vec![0; word(2) as usize];
    socket.read_exact(&mut payload).ok()?;
    Some(Message { request: word(0), flags: word(1), payload, files })
}

pub(super) fn reply(request: u32, payload: &[u8]) -> Vec<u8> {
    message(request, VERSION | IS_REPLY, u32::try_from(payload.len()).unwrap(), payload)
}

pub(super) fn message(request: u32, flags: u32, length: u32, payload: &[u8]) -> Vec<u8> {
    [request, flags, length]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .chain(payload.iter().copied())
        .collect()
}

fn right_answer(message: &Message) -> Option<Vec<u8>> {
    Some(match message.request {
        GET_FEATURES => FEATURES.to_le_bytes().to_vec(),
        GET_PROTOCOL_FEATURES => (PROTOCOL_FEATURES | 1 << 9 | 1 << 15).to_le_bytes().to_vec(),
        GET_QUEUE_NUM => 2_u64.to_le_bytes().to_vec(),
        GET_VRING_BASE => message.payload.clone(),
        _ if message.flags & NEEDS_REPLY != 0 => 0_u64.to_le_bytes().to_vec(),
        _ => return None,
    })
}
