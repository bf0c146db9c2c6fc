//! A registry that answers as a test says.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use crate::digest::Digest;
use crate::documents::OCI_MANIFEST;
use crate::fixtures::Fixture;

/// A request, as it came.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) headers: HashMap<String, String>,
}

/// What is answered.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    /// How many bytes of the body are sent before the connection ends.
    pub(super) cut: Option<usize>,
    /// Whether the rest never comes while the connection stays.
    pub(super) hangs: bool,
    /// Which part comes a byte at a time, ten in a second: the head, or the body.
    pub(super) drips: Option<Part>,
}

/// A part of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Head,
    Body,
}

impl Reply {
    pub(super) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), cut: None, hangs: false, drips: None }
    }

    pub(super) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub(super) fn cut(self, at: usize) -> Self {
        Self { cut: Some(at), ..self }
    }
}

type Handler = dyn Fn(&Seen) -> Reply + Send + Sync;

/// A server on 127.0.0.1, which ends with the test's process.
pub(super) struct Fake {
    pub(super) host: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Fake {
    pub(super) fn new(handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (handler, log): (Arc<Handler>, _) = (Arc::new(handler), Arc::clone(&seen));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (handler, log) = (Arc::clone(&handler), Arc::clone(&log));
                // A client may go away at any time.
                std::thread::spawn(move || drop(serve(&stream.unwrap(), &*handler, &log)));
            }
        });
        Self { host, seen }
    }

    /// All requests but those that find out whether this is HTTPS.
    pub(super) fn seen(&self) -> Vec<Seen> {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|seen| seen.path != "/v2/").cloned().collect()
    }

    /// How many requests for blobs there were.
    pub(super) fn blobs(&self) -> usize {
        self.seen().iter().filter(|seen| seen.path.contains("/blobs/")).count()
    }
}

fn serve(stream: &TcpStream, handler: &Handler, log: &Mutex<Vec<Seen>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    std::io::copy(&mut reader.take(length), &mut std::io::sink())?;
    let seen = Seen { method, path, headers };
    log.lock().unwrap().push(seen.clone());
    let reply = handler(&seen);
    let mut stream = stream;
    let mut head = format!("HTTP/1.1 {} x\r\nconnection: close\r\n", reply.status);
    if !reply.headers.iter().any(|(name, _)| name == "content-length") {
        head += &format!("content-length: {}\r\n", reply.body.len());
    }
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += "\r\n";
    let mut send = |bytes: &[u8], part| {
        let size = if reply.drips == Some(part) { 1 } else { bytes.len().max(1) };
        bytes.chunks(size).try_for_each(|chunk| {
            if reply.drips == Some(part) {
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
            stream.write_all(chunk)
        })
    };
    send(head.as_bytes(), Part::Head)?;
    if seen.method != "HEAD" {
        let end = reply.cut.unwrap_or(reply.body.len()).min(reply.body.len());
        send(&reply.body[..end], Part::Body)?;
    }
    if reply.hangs {
        // Until the client has gone.
        let _ = (&mut stream).read(&mut [0]);
    }
    Ok(())
}

/// What a registry has: documents by their name or digest, and blobs.
#[derive(Clone, Default)]
pub(super) struct Content {
    pub(super) documents: HashMap<String, (String, Vec<u8>)>,
    pub(super) blobs: HashMap<String, Vec<u8>>,
}

impl Content {
    /// An image as `a:1`, with compressed layers.
    pub(super) fn of(fixture: &Fixture) -> Self {
        let (manifest, blobs) = fixture.oci("+gzip", crate::fixtures::gzip);
        let mut content = Self::default();
        content.document("1", OCI_MANIFEST, &manifest);
        content.blobs = blobs.into_iter().map(|blob| (Digest::of(&blob).to_string(), blob)).collect();
        content
    }

    pub(super) fn document(&mut self, name: &str, media_type: &str, bytes: &[u8]) {
        let document = (media_type.to_owned(), bytes.to_vec());
        self.documents.insert(Digest::of(bytes).to_string(), document.clone());
        self.documents.insert(name.to_owned(), document);
    }

    /// The largest blob.
    pub(super) fn largest(&self) -> (String, Vec<u8>) {
        let largest = self.blobs.iter().max_by_key(|(_, blob)| blob.len()).unwrap();
        (largest.0.clone(), largest.1.clone())
    }

    /// As a registry should answer.
    pub(super) fn reply(&self, seen: &Seen) -> Reply {
        let name = seen.path.rsplit('/').next().unwrap();
        if seen.path == "/v2/" {
            return Reply::new(200, "{}");
        }
        if seen.path.contains("/manifests/") {
            return match self.documents.get(name) {
                Some((media_type, bytes)) => {
                    Reply::new(200, bytes.clone()).header("content-type", media_type)
                }
                None => Reply::new(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#),
            };
        }
        let Some(blob) = self.blobs.get(name) else { return Reply::new(404, "") };
        let range =
            seen.headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
        match range.and_then(|start| start.parse::<usize>().ok()) {
            Some(start) if start < blob.len() => Reply::new(206, &blob[start..])
                .header("content-range", format!("bytes {start}-{}/{}", blob.len() - 1, blob.len())),
            Some(_) => Reply::new(416, ""),
            None => Reply::new(200, blob.clone()),
        }
    }
}
