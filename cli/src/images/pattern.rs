//! Patterns of references, as `--filter reference=` has them.

use image::Reference;

/// Whether the pattern fits the reference, with or without its tag, as users write it or with all that is implied.
pub fn names(pattern: &str, reference: &Reference) -> bool {
    let tagless = super::list::repository(reference);
    let forms = [reference.to_string(), tagless, reference.canonical(), reference.name()];
    forms.iter().any(|form| fits(pattern.as_bytes(), form.as_bytes()))
}

/// Go's path.Match: `*` and `?` stand for anything but a slash, `[a-z]` and `[^a-z]` for one of these characters or
/// another one, and `\` takes the next character as it is. A pattern that is not one fits nothing.
fn fits(pattern: &[u8], text: &[u8]) -> bool {
    // Where the last star was, and up to which byte it has been tried.
    let mut star: Option<(&[u8], &[u8])> = None;
    let (mut pattern, mut text) = (pattern, text);
    loop {
        let step = match pattern.split_first() {
            None if text.is_empty() => return true,
            Some((b'*', rest)) => {
                star = Some((rest, text));
                pattern = rest;
                continue;
            }
            _ => one(pattern, text),
        };
        match (step, star) {
            (Some((rest, after)), _) => (pattern, text) = (rest, after),
            (None, Some((rest, tried))) => match tried.split_first() {
                Some((byte, after)) if *byte != b'/' => {
                    star = Some((rest, after));
                    (pattern, text) = (rest, after);
                }
                _ => return false,
            },
            (None, None) => return false,
        }
    }
}

/// What is left of both where the pattern's first element fits the text's first byte.
fn one<'a>(pattern: &'a [u8], text: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let (first, rest) = pattern.split_first()?;
    let (byte, after) = text.split_first()?;
    let fits = match first {
        b'?' => *byte != b'/',
        b'[' => {
            let (is_in, rest) = class(rest, *byte)?;
            return (is_in && *byte != b'/').then_some((rest, after));
        }
        b'\\' => {
            let (literal, rest) = rest.split_first()?;
            return (literal == byte).then_some((rest, after));
        }
        literal => literal == byte,
    };
    fits.then_some((rest, after))
}

/// Whether `byte` is in the class that begins behind a `[`, and what follows the class.
fn class(pattern: &[u8], byte: u8) -> Option<(bool, &[u8])> {
    let (is_negated, mut pattern) = match pattern.split_first()? {
        (b'^', rest) => (true, rest),
        _ => (false, pattern),
    };
    let mut found = false;
    let mut is_first = true;
    loop {
        let (low, rest) = pattern.split_first()?;
        if *low == b']' && !is_first {
            return Some((found != is_negated, rest));
        }
        is_first = false;
        pattern = match rest {
            [b'-', high, rest @ ..] if *high != b']' => {
                found |= (*low..=*high).contains(&byte);
                rest
            }
            _ => {
                found |= *low == byte;
                rest
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("alpine", true)]
    #[case("alpine:3.20", true)]
    #[case("alpine:*", true)]
    #[case("al*", true)]
    #[case("*:3.2?", true)]
    #[case("alpine:3.[0-9]*", true)]
    #[case("alpine:3.[^2]*", false)]
    #[case("docker.io/library/alpine", true)]
    #[case("docker.io/library/alpine:3.20", true)]
    #[case("docker.io/*/alpine", true)]
    #[case("*/alpine", false)]
    #[case("alp", false)]
    #[case("alpine:3", false)]
    #[case("*b*", false)]
    #[case("alpine:3.\\20", true)]
    #[case("[", false)]
    #[case("alpine[", false)]
    #[case("", false)]
    fn patterns_fit_as_docker_s_do(#[case] pattern: &str, #[case] expected: bool) {
        assert_eq!(names(pattern, &"alpine:3.20".parse().unwrap()), expected);
    }

    #[test]
    fn a_star_does_not_fit_a_slash() {
        let reference = "ghcr.io/a/b:1".parse().unwrap();
        assert!(names("ghcr.io/*/b", &reference) && names("*/*/*", &reference));
        assert!(!names("ghcr.io/*", &reference) && !names("*", &reference));
    }

    proptest! {
        #[test]
        fn no_pattern_is_too_odd(pattern in "[a*?\\[\\]^\\\\/-]{0,24}", text in "[a/]{0,24}") {
            let _ = fits(pattern.as_bytes(), text.as_bytes());
        }

        #[test]
        fn a_text_fits_itself(text in "[a-z0-9./:]{1,24}") {
            prop_assert!(fits(text.as_bytes(), text.as_bytes()));
            let with_star = format!("{text}*");
            prop_assert!(fits(with_star.as_bytes(), text.as_bytes()));
        }
    }
}
