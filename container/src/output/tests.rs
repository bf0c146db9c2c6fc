use std::fs;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

fn read(path: &Path, options: LogOptions) -> (Vec<u8>, Vec<u8>) {
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    LogReader::open(path, options).unwrap().copy(&mut output, &mut errors).unwrap();
    (output, errors)
}

fn all(path: &Path) -> (Vec<u8>, Vec<u8>) {
    read(path, LogOptions::default())
}

proptest! {
    /// However output comes in pieces, what is read is what was written.
    #[test]
    fn output_comes_back(pieces in prop::collection::vec((any::<bool>(), "[a\n]{0,40}"), 0..40)) {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("log");
        let mut log = OutputLog::open(&path, LogLimits::default()).unwrap();
        let mut expected = (Vec::new(), Vec::new());
        for (is_error, piece) in &pieces {
            let (stream, expected) =
                if *is_error { (Stream::Stderr, &mut expected.1) } else { (Stream::Stdout, &mut expected.0) };
            log.push(stream, piece.as_bytes());
            expected.extend_from_slice(piece.as_bytes());
        }
        log.finish();
        prop_assert_eq!(all(&path), expected);
    }

    #[test]
    fn noise_in_a_log_is_passed_over(noise in prop::collection::vec(any::<u8>(), 0..200)) {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("log");
        fs::write(&path, noise).unwrap();
        let _ = all(&path);
    }
}

#[test]
fn binary_output_without_lines_comes_back_and_its_lines_are_cut() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("log");
    let mut log = OutputLog::open(&path, LogLimits::default()).unwrap();
    let bytes: Vec<u8> = (0..100_000_u32).map(|number| (number % 251) as u8).collect();
    for piece in bytes.chunks(7000) {
        log.push(Stream::Stdout, piece);
    }
    log.finish();
    assert_eq!(all(&path).0, bytes);
    let longest = fs::read(&path).unwrap().split(|byte| *byte == b'\n').map(<[u8]>::len).max();
    assert!(longest.unwrap() <= MAX_LINE + 50);
}

#[test]
fn a_full_log_has_the_latest_lines_and_a_reader_that_follows_misses_none() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("log");
    let mut log = OutputLog::open(&path, LogLimits { size: 4096, files: 3 }).unwrap();
    let mut follower = LogReader::open(&path, LogOptions::default()).unwrap();
    let mut followed = Vec::new();
    for number in 0..1000 {
        log.push(Stream::Stdout, format!("line {number}\n").as_bytes());
        if number % 10 == 0 {
            follower.copy(&mut followed, io::sink()).unwrap();
        }
    }
    follower.copy(&mut followed, io::sink()).unwrap();
    let expected: String = (0..1000).map(|number| format!("line {number}\n")).collect();
    assert_eq!(String::from_utf8(followed).unwrap(), expected);
    let kept = String::from_utf8(all(&path).0).unwrap();
    assert!(expected.ends_with(&kept) && kept.len() > 1000, "{kept}");
    let tail = |count| read(&path, LogOptions { tail: Some(count), ..LogOptions::default() }).0;
    assert_eq!(tail(2), b"line 998\nline 999\n");
    assert_eq!(tail(0), b"");
}

#[test]
fn lines_have_times_and_can_be_chosen_by_them() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("log");
    let line = |second: u32, text: &str| format!("2024-01-01T00:00:{second:02}.000000000Z stdout {text}\n");
    fs::write(&path, line(1, "F one") + &line(2, "P tw") + &line(3, "F o") + &line(4, "F three")).unwrap();
    let with_times = read(&path, LogOptions { timestamps: true, ..LogOptions::default() }).0;
    assert_eq!(
        String::from_utf8(with_times).unwrap(),
        "2024-01-01T00:00:01.000000000Z one\n2024-01-01T00:00:02.000000000Z two\n2024-01-01T00:00:04.000000000Z three\n"
    );
    let since = parse_time("2024-01-01T00:00:02");
    let until = parse_time("2024-01-01T01:00:04+01:00");
    let some = read(&path, LogOptions { since, until, ..LogOptions::default() }).0;
    assert_eq!(some, b"two\n");
    for text in ["", "x", "-1", "2024-13-01T00:00:00Z", "1e99"] {
        let parsed = parse_time(text);
        assert!(parsed.is_none(), "{text}: {parsed:?}");
    }
    assert_eq!(parse_time("1709210096").unwrap(), "2024-02-29T12:34:56.000000000Z");
}
