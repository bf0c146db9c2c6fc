//! Requests, found in the bytes of a connection (RFC 9112).

use httparse::{Header, Status};

use super::response::Framing;

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
    /// What the answer has to keep to.
    pub(super) framing: Framing,
}

/// What the bytes of a connection are the beginning of.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed<'a> {
    /// A request, and how many bytes it has.
    Whole(Request<'a>, usize),
    /// A part of one. The client may wait for `100 Continue` before it sends the body (RFC 9110,
    /// 10.1.1).
    Part { expects_continue: bool },
    /// An invalid request: the status code, and what is wrong.
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
        Err(httparse::Error::Version) => return bad(505, "use HTTP/1.1 or HTTP/1.0"),
        Err(error) => return bad(400, &format!("invalid HTTP request: {error}")),
    };
    let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
    let fields = match read_fields(request.headers) {
        Ok(fields) => fields,
        Err(bad) => return bad,
    };
    // HTTP/1.0 closes unless asked not to, and knows of no word before the answer (RFC 9110, 15.2).
    let is_old = request.version == Some(0);
    let last = fields.last || (is_old && !fields.keeps);
    let framing = Framing { last, keeps_alive: is_old && !last, is_head: method == "HEAD" };
    let Some(body) = head_length.checked_add(fields.length).and_then(|end| bytes.get(head_length..end))
    else {
        let expects_continue = fields.expects_continue && !is_old && bytes.len() == head_length;
        return Parsed::Part { expects_continue };
    };
    Parsed::Whole(Request { method, path: path_of(target), body, framing }, head_length + fields.length)
}

/// The path of a target in origin form or in absolute form (RFC 9112, 3.2): without scheme, host and query.
fn path_of(target: &str) -> &str {
    let after_scheme = ["http://", "https://"].iter().find_map(|scheme| {
        let (start, rest) = target.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(rest)
    });
    let path = match after_scheme {
        Some(rest) => rest.find(['/', '?', '#']).and_then(|end| rest.get(end..)).unwrap_or_default(),
        None => target,
    };
    match path.split(['?', '#']).next() {
        None | Some("") => "/",
        Some(path) => path,
    }
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

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("/version", "/version")]
    #[case("/version?pretty=1", "/version")]
    #[case("/", "/")]
    #[case("http://localhost/version", "/version")]
    #[case("HTTP://localhost:80/vm/config?x#y", "/vm/config")]
    #[case("https://[::1]/", "/")]
    #[case("http://localhost", "/")]
    #[case("http://localhost?x=/version", "/")]
    #[case("?x", "/")]
    #[case("ftp://localhost/version", "ftp://localhost/version")]
    #[case("*", "*")]
    fn a_target_is_a_path_or_has_one(#[case] target: &str, #[case] path: &str) {
        assert_eq!(path_of(target), path);
    }

    #[rstest]
    #[case("GET / HTTP/1.1", Framing { last: false, keeps_alive: false, is_head: false })]
    #[case("HEAD / HTTP/1.1", Framing { last: false, keeps_alive: false, is_head: true })]
    #[case("GET / HTTP/1.0", Framing { last: true, keeps_alive: false, is_head: false })]
    #[case("GET / HTTP/1.0\r\nConnection: keep-alive", Framing { last: false, keeps_alive: true, is_head: false })]
    #[case("GET / HTTP/1.1\r\nConnection: keep-alive", Framing { last: false, keeps_alive: false, is_head: false })]
    fn an_answer_keeps_to_its_requests_version_and_method(#[case] head: &str, #[case] framing: Framing) {
        let bytes = format!("{head}\r\n\r\n");
        let Parsed::Whole(request, length) = parse(bytes.as_bytes()) else { panic!("it is whole") };
        assert_eq!((request.framing, length), (framing, bytes.len()));
    }
}
