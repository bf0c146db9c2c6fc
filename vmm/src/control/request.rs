//! Requests, found in the bytes of a connection (RFC 9112).

use httparse::{Header, Status};

/// The most bytes of a request before its body.
pub(super) const MAX_HEAD: usize = 8 << 10;
/// The most bytes of a body.
pub(super) const MAX_BODY: usize = 64 << 10;
/// The most header fields.
const MAX_FIELDS: usize = 64;

/// A whole request.
#[derive(Debug, PartialEq, Eq)]
pub struct Request<'a> {
    pub(super) method: &'a str,
    /// The path, without a query.
    pub(super) path: &'a str,
    pub(super) body: &'a [u8],
    /// The connection ends with the answer.
    pub(super) last: bool,
}

/// What the bytes of a connection are the beginning of.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed<'a> {
    /// A request, and how many bytes it has.
    Whole(Request<'a>, usize),
    /// A part of one. The client may wait for a word before it sends the body (RFC 9110, 10.1.1).
    Part { expects_continue: bool },
    /// Nothing that could become a request; the status code, and what is wrong.
    Bad(u16, String),
}

/// What the header fields say that matters here.
#[derive(Default)]
struct Fields {
    length: usize,
    last: bool,
    keeps: bool,
    expects_continue: bool,
}

/// Looks for a request at the beginning of `bytes`.
pub(super) fn parse(bytes: &[u8]) -> Parsed<'_> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    // No more than a head may have, so that what is too long is found while its end is still missing.
    let head = bytes.get(..MAX_HEAD).unwrap_or(bytes);
    let head_length = match request.parse(head) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) if head.len() < MAX_HEAD => return Parsed::Part { expects_continue: false },
        Ok(Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return bad(431, "the request has more than 8 KiB or 64 fields before its body");
        }
        Err(httparse::Error::Version) => return bad(505, "HTTP/1.0 and HTTP/1.1 are spoken here"),
        Err(error) => return bad(400, &format!("this is not HTTP: {error}")),
    };
    let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
    let fields = match read_fields(request.headers) {
        Ok(fields) => fields,
        Err(bad) => return bad,
    };
    // HTTP/1.0 closes unless asked not to; neither side gains by that here.
    let last = fields.last || (request.version == Some(0) && !fields.keeps);
    let Some(body) = head_length.checked_add(fields.length).and_then(|end| bytes.get(head_length..end))
    else {
        return Parsed::Part { expects_continue: fields.expects_continue && bytes.len() == head_length };
    };
    let path = target.split(['?', '#']).next().unwrap_or_default();
    Parsed::Whole(Request { method, path, body, last }, head_length + fields.length)
}

fn bad(status: u16, message: &str) -> Parsed<'static> {
    Parsed::Bad(status, message.to_owned())
}

fn read_fields(headers: &[Header<'_>]) -> Result<Fields, Parsed<'static>> {
    let mut fields = Fields::default();
    let mut length = None;
    for Header { name, value } in headers {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        if is("content-length") {
            let value = content_length(value)?;
            // Two that differ are how requests are smuggled (RFC 9112, 6.3).
            if length.replace(value).is_some_and(|before| before != value) {
                return Err(bad(400, "the request has two lengths"));
            }
        } else if is("transfer-encoding") {
            return Err(bad(411, "send the body with a Content-Length"));
        } else if is("connection") {
            fields.last |= has_token(value, "close");
            fields.keeps |= has_token(value, "keep-alive");
        } else if is("expect") {
            if !value.eq_ignore_ascii_case(b"100-continue") {
                return Err(bad(417, "only 100-continue can be expected"));
            }
            fields.expects_continue = true;
        }
    }
    fields.length = length.unwrap_or(0);
    Ok(fields)
}

fn content_length(value: &[u8]) -> Result<usize, Parsed<'static>> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(bad(400, "the request's length is not a number"));
    }
    // A number too large for the type is too large for a body.
    let length = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok());
    match length {
        Some(length) if length <= MAX_BODY => Ok(length),
        _ => Err(bad(413, "the body has more than 64 KiB")),
    }
}

fn has_token(value: &[u8], token: &str) -> bool {
    value.split(|byte| *byte == b',').any(|word| word.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}
