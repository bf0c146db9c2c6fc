//! Answers.

use std::io::Write;

use instance::api::Fault;
use serde::Serialize;

/// The answer to a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Response {
    status: u16,
    content_type: &'static str,
    /// The methods that the resource has, where the request's is none of them.
    allow: Option<String>,
    body: Vec<u8>,
}

/// How an answer is written, as its request has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Framing {
    /// The connection ends with it.
    pub(super) last: bool,
    /// The client speaks HTTP/1.0, and is told that the connection stays (RFC 9112, C.2.2).
    pub(super) keeps_alive: bool,
    /// It is an answer to HEAD: the same as to GET, without the body (RFC 9110, 9.3.2).
    pub(super) is_head: bool,
}

const JSON: &str = "application/json";

impl Response {
    /// Done, and nothing to say.
    pub(super) fn done() -> Self {
        Self { status: 204, content_type: JSON, allow: None, body: Vec::new() }
    }

    /// `body` as JSON.
    pub(super) fn json(body: &impl Serialize) -> Self {
        match serde_json::to_vec(body) {
            Ok(body) => Self { status: 200, content_type: JSON, allow: None, body },
            Err(error) => Self::fault(500, &error.to_string()),
        }
    }

    /// `body` as it is.
    pub(super) fn text(content_type: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, content_type, allow: None, body: body.into() }
    }

    /// Something is wrong.
    pub(super) fn fault(status: u16, message: &str) -> Self {
        let body = serde_json::to_vec(&Fault { fault_message: message.to_owned() }).unwrap_or_default();
        Self { status, content_type: JSON, allow: None, body }
    }

    /// The resource has other methods (RFC 9110, 15.5.6).
    pub(super) fn wrong_method(allow: &[&str]) -> Self {
        let allow = allow.join(", ");
        let fault = Self::fault(405, &format!("method not allowed: this resource supports {allow}"));
        Self { allow: Some(allow), ..fault }
    }

    /// Writes the answer to the end of `output`.
    pub(super) fn write(&self, output: &mut Vec<u8>, framing: Framing) {
        let reason = match self.status {
            200 => "OK",
            204 => "No Content",
            400 => "Bad Request",
            404 => "Not Found",
            405 => "Method Not Allowed",
            411 => "Length Required",
            413 => "Content Too Large",
            417 => "Expectation Failed",
            431 => "Request Header Fields Too Large",
            503 => "Service Unavailable",
            505 => "HTTP Version Not Supported",
            _ => "Internal Server Error",
        };
        // Writing to a vector does not fail.
        let _ = write!(output, "HTTP/1.1 {} {reason}\r\nServer: mvm\r\n", self.status);
        if let Some(allow) = &self.allow {
            let _ = write!(output, "Allow: {allow}\r\n");
        }
        if framing.last {
            output.extend_from_slice(b"Connection: close\r\n");
        } else if framing.keeps_alive {
            output.extend_from_slice(b"Connection: keep-alive\r\n");
        }
        if self.status != 204 {
            let (kind, length) = (self.content_type, self.body.len());
            let _ = write!(output, "Content-Type: {kind}\r\nContent-Length: {length}\r\n");
        }
        output.extend_from_slice(b"\r\n");
        if !framing.is_head {
            output.extend_from_slice(&self.body);
        }
    }
}
