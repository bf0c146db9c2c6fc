//! Signals by name.

use crate::image::ImageConfig;
use crate::options::{OptionsError, RunOptions};

/// The signals of x86 and ARM, from number 1 on (signal(7)).
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
/// The first of the signals without a use of their own, as the C library counts them.
const RTMIN: u8 = 34;

/// The signal that asks a container to end.
///
/// # Errors
///
/// [`OptionsError::Signal`].
pub fn stop_signal(image: &ImageConfig, options: &RunOptions) -> Result<u8, OptionsError> {
    match options.stop_signal.as_ref().or(image.stop_signal.as_ref()).filter(|text| !text.is_empty()) {
        None => Ok(15),
        Some(text) => number(text).ok_or_else(|| OptionsError::Signal(text.clone())),
    }
}

/// Reads a name, with or without `SIG` in front, or a number from 1 to 64.
pub fn number(text: &str) -> Option<u8> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(place) = NAMES.iter().position(|known| *known == name) {
        return u8::try_from(place + 1).ok();
    }
    let real_time = name.strip_prefix("RTMIN").map(|rest| rest.strip_prefix('+').unwrap_or("0"));
    let number = match real_time {
        Some(rest) => RTMIN.checked_add(rest.parse().ok()?)?,
        None => name.parse().ok()?,
    };
    (1..=64).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("SIGTERM", Some(15))]
    #[case("quit", Some(3))]
    #[case("SIGWINCH", Some(28))]
    #[case("SIGRTMIN+3", Some(37))]
    #[case("RTMIN", Some(34))]
    #[case("9", Some(9))]
    #[case("0", None)]
    #[case("65", None)]
    #[case("SIGRTMIN+40", None)]
    #[case("SIGFOO", None)]
    fn signals_have_names_and_numbers(#[case] text: &str, #[case] expected: Option<u8>) {
        assert_eq!(number(text), expected);
    }

    #[test]
    fn the_users_signal_wins_over_the_images() {
        let image = ImageConfig { stop_signal: Some("SIGQUIT".into()), ..ImageConfig::default() };
        let options = |signal: &str| RunOptions { stop_signal: Some(signal.into()), ..RunOptions::default() };
        assert_eq!(stop_signal(&image, &RunOptions::default()), Ok(3));
        assert_eq!(stop_signal(&image, &options("INT")), Ok(2));
        assert_eq!(stop_signal(&ImageConfig::default(), &RunOptions::default()), Ok(15));
        assert_eq!(stop_signal(&image, &options("x")), Err(OptionsError::Signal("x".into())));
    }
}
