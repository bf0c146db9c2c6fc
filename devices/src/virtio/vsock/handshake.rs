//! The line by which a process of the host says where it wants to be connected to.

/// The longest line, in bytes; `CONNECT 4294967295` has room to spare.
pub(super) const MAX_LENGTH: usize = 32;

/// What the first bytes of a connection are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// The beginning of a line.
    Unfinished,
    /// A whole line of `length` bytes that names `port`.
    Connect { port: u32, length: usize },
    /// Something else.
    Invalid,
}

/// Reads `CONNECT <port>\n` off the front of `bytes`, which are at most [`MAX_LENGTH`].
pub(super) fn parse(bytes: &[u8]) -> Line {
    let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else {
        return if bytes.len() < MAX_LENGTH { Line::Unfinished } else { Line::Invalid };
    };
    let line = bytes.get(..end).and_then(|line| std::str::from_utf8(line).ok()).unwrap_or_default();
    let mut words = line.split_ascii_whitespace();
    let (command, port, rest) = (words.next(), words.next(), words.next());
    match (command, port.and_then(number), rest) {
        (Some(command), Some(port), None) if command.eq_ignore_ascii_case("CONNECT") => {
            Line::Connect { port, length: end + 1 }
        }
        _ => Line::Invalid,
    }
}

/// A decimal number without a sign, which `parse` alone would take.
fn number(word: &str) -> Option<u32> {
    if word.bytes().all(|byte| byte.is_ascii_digit()) { word.parse().ok() } else { None }
}

/// What the process reads once it is connected; `port` is the host's port of the connection.
pub(super) fn answer(port: u32) -> String {
    format!("OK {port}\n")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("CONNECT 52\n", Line::Connect { port: 52, length: 11 })]
    #[case("connect 4294967295\r\nmore", Line::Connect { port: u32::MAX, length: 20 })]
    #[case("", Line::Unfinished)]
    #[case("CONNECT 5", Line::Unfinished)]
    #[case("CONNECT 4294967296\n", Line::Invalid)]
    #[case("CONNECT -1\n", Line::Invalid)]
    #[case("CONNECT +1\n", Line::Invalid)]
    #[case("CONNECT\n", Line::Invalid)]
    #[case("CONNECT 1 2\n", Line::Invalid)]
    #[case("GET / HTTP/1.1\n", Line::Invalid)]
    #[case("\n", Line::Invalid)]
    #[case("CONNECT                         ", Line::Invalid)]
    fn only_the_one_line_is_taken(#[case] text: &str, #[case] expected: Line) {
        assert_eq!(parse(text.as_bytes()), expected);
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_decided_within_bounds(bytes in prop::collection::vec(any::<u8>(), 0..=MAX_LENGTH)) {
            if let Line::Connect { length, .. } = parse(&bytes) {
                prop_assert_eq!(bytes[length - 1], b'\n');
            }
        }
    }
}
