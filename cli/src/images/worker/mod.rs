//! Pulling, pushing, loading, importing, committing and logging in, in a process of their own: what parses the bytes of
//! strangers has nothing of the user's but the store; or, where `mvm cp` unpacks a container's files, a directory.
//!
//! The process is this program with the hidden command `worker`. Its standard input is the archive that is read, its
//! working directory the layout that is loaded, and its standard output a socket, on which it first gets a [`Request`]
//! and then sends [`Message`]s. The process that has started it reads credentials and runs their helpers, and shows how
//! it goes. It takes what the other one says as what a stranger says.
//!
//! Before it reads anything of a stranger's, the process gives up what its job does not need ([`seal`]). Its standard
//! error is where it reports a system call that it may not make.

#[cfg(feature = "attack")]
mod attack;
mod child;
mod parent;
mod seal;
mod table;
#[cfg(test)]
mod tests;

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use agent_protocol::Decoder;
use image::{Credentials, Digest, Mirror, PullEvent, Pulled};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use child::WorkerCommand;
pub use parent::{Failure, Input, Outcome, Task};

/// The most bytes of an error's text.
const MAX_TEXT: usize = 4 << 10;
/// The most images of a load.
const MAX_IMAGES: usize = 1024;

/// What is to be done, and with what.
#[derive(Serialize, Deserialize)]
struct Request {
    /// The store's directory.
    store: PathBuf,
    max_unpacked: u64,
    plain_http: bool,
    mirrors: Vec<Mirror>,
    /// How the process confines itself.
    jail: jail::Mode,
    job: Job,
}

/// What is to be done.
#[derive(Clone, Serialize, Deserialize)]
pub enum Job {
    /// Pull the image of this reference.
    Pull(String),
    /// Push the image of this reference.
    Push(String),
    /// Load the archive on standard input.
    Load,
    /// Load the layout in the working directory.
    LoadDirectory,
    /// Make an image of one layer of the archive on standard input.
    Import {
        /// The `config` of the image, as JSON.
        config: String,
        /// When it was made (RFC 3339).
        created: String,
        /// What its history says.
        comment: String,
        /// What it is called.
        reference: Option<String>,
    },
    /// Make an image of another one and the layer on standard input.
    Commit {
        /// The other one's ID.
        parent: String,
        /// What is changed of its `config`, each as JSON.
        changes: Vec<String>,
        /// When it was made (RFC 3339).
        created: String,
        /// What made it.
        created_by: String,
        /// Who made it.
        author: Option<String>,
        /// What its history says.
        comment: String,
        /// What it is called.
        reference: Option<String>,
    },
    /// Unpack the tar stream on standard input in the working directory.
    Unpack {
        /// All that is in it has this name or is below it.
        only: Option<Vec<u8>>,
        /// Files belong to the users and groups that the stream has, where this user may do that.
        keeps_owners: bool,
    },
    /// Check credentials for a registry.
    Login {
        /// The registry's name.
        registry: String,
        /// What it is asked about.
        credentials: Credentials,
    },
}

/// What the process that works says.
#[derive(Serialize, Deserialize)]
enum Message {
    /// How a pull goes.
    Event(PullEvent),
    /// It needs the credentials for this repository, and waits for an [`Answer`].
    Credentials { registry: String, repository: String },
    /// An image was loaded, which has these references.
    Loaded { id: Digest, references: Vec<String> },
    /// All was done.
    Done(Done),
    /// The credentials are wrong, in a line for the user.
    Refused(String),
    /// It could not be done, in a line for the user.
    Failed(String),
}

#[derive(Serialize, Deserialize)]
enum Done {
    Pulled(Pulled),
    Pushed(Digest),
    Loaded,
    Unpacked {
        /// Device nodes that were not made.
        devices: u64,
    },
    /// With an identity token, if the registry gives one.
    LoggedIn(Option<String>),
}

/// The credentials for a registry, or why there are none in a line for the user.
type Answer = Result<Option<Credentials>, String>;

/// Sends a message of up to 1 MiB.
fn send(mut socket: &UnixStream, message: &impl Serialize) -> io::Result<()> {
    let bytes = agent_protocol::encode(message).map_err(io::Error::other)?;
    socket.write_all(&bytes)
}

/// Waits for the message that comes next; none at the end.
fn receive<T: DeserializeOwned>(mut socket: &UnixStream, decoder: &mut Decoder) -> io::Result<Option<T>> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let mut buffer = [0; 4096];
    loop {
        if let Some(message) = decoder.take().map_err(invalid)? {
            return Ok(Some(message));
        }
        let count = match socket.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            count => count?,
        };
        match buffer.get(..count) {
            Some([]) | None => return Ok(None),
            Some(bytes) => decoder.push(bytes),
        }
    }
}

/// As much of a text as a message may have.
fn bounded(mut text: String) -> String {
    let end = (0..=MAX_TEXT.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text.truncate(end.unwrap_or(0));
    text
}
