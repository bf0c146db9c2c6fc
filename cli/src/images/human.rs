//! Sizes and times as docker shows them.

use std::time::{SystemTime, UNIX_EPOCH};

/// A size with three significant digits in powers of 1,000, as in `7.83MB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut thousandths = u128::from(bytes) * 1000;
    let mut units = UNITS.iter();
    let mut unit = units.next().copied().unwrap_or("B");
    while thousandths >= 1_000_000 {
        let Some(next) = units.next() else { break };
        thousandths /= 1000;
        unit = next;
    }
    let digits = match thousandths {
        0..10_000 => 2,
        10_000..100_000 => 1,
        _ => 0,
    };
    let step = 10_u128.pow(3 - digits);
    let rounded = (thousandths + step / 2) / step;
    let (whole, fraction) = (rounded / 10_u128.pow(digits), rounded % 10_u128.pow(digits));
    let width = usize::try_from(digits).unwrap_or(0);
    let text = if digits == 0 { format!("{whole}") } else { format!("{whole}.{fraction:0width$}") };
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

/// How long ago `created` (RFC 3339) was, as in `3 weeks ago`; `N/A` where it is not a time.
pub fn age(created: Option<&str>) -> String {
    let Some(then) = created.and_then(seconds) else { return "N/A".into() };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed());
    format!("{} ago", duration(now.saturating_sub(then).max(0)))
}

fn duration(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match seconds {
        ..1 => "Less than a second".into(),
        1 => "1 second".into(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".into(),
        _ if minutes < 60 => format!("{minutes} minutes"),
        _ if hours == 1 => "About an hour".into(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        _ if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

/// Seconds since 1970 of a time such as `2024-05-06T07:08:09.123Z` or `…+02:00`.
fn seconds(text: &str) -> Option<i64> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let at = |place: usize, sign: &str| text.get(place..=place) == Some(sign);
    let is_time = at(4, "-") && at(7, "-") && (at(10, "T") || at(10, "t") || at(10, " ")) && at(13, ":");
    is_time.then_some(())?;
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let zone = text.get(19..)?.trim_start_matches(|sign: char| sign == '.' || sign.is_ascii_digit());
    let offset = match zone.split_at_checked(1)? {
        ("Z" | "z", "") => 0,
        (sign @ ("+" | "-"), offset) => {
            let (hours, minutes) = offset.split_once(':')?;
            let offset = hours.parse::<i64>().ok()? * 3600 + minutes.parse::<i64>().ok()? * 60;
            if sign == "-" { -offset } else { offset }
        }
        _ => return None,
    };
    let is_valid = (1..=12).contains(&month) && (1..=31).contains(&day);
    is_valid.then_some(())?;
    // Days since 1970 of the Gregorian calendar, in years that begin in March.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let era = year.div_euclid(400);
    let day_of_era = {
        let year = year.rem_euclid(400);
        year * 365 + year / 4 - year / 100 + (153 * month + 2) / 5 + day - 1
    };
    let days = era * 146_097 + day_of_era - 719_468;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second - offset)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(0, "0B")]
    #[case(999, "999B")]
    #[case(1000, "1kB")]
    #[case(7_826_432, "7.83MB")]
    #[case(78_264_320, "78.3MB")]
    #[case(782_643_200, "783MB")]
    #[case(u64::MAX, "18.4EB")]
    fn sizes_are_those_of_docker(#[case] bytes: u64, #[case] text: &str) {
        assert_eq!(size(bytes), text);
    }

    #[rstest]
    #[case("1970-01-01T00:00:00Z", Some(0))]
    #[case("2024-02-29T12:34:56.789Z", Some(1_709_210_096))]
    #[case("2024-02-29T12:34:56+01:00", Some(1_709_206_496))]
    #[case("0001-01-01T00:00:00Z", Some(-62_135_596_800))]
    #[case("2024-13-01T00:00:00Z", None)]
    #[case("yesterday", None)]
    #[case("", None)]
    fn times_are_read(#[case] text: &str, #[case] expected: Option<i64>) {
        assert_eq!(seconds(text), expected);
    }

    #[rstest]
    #[case(0, "Less than a second")]
    #[case(59, "59 seconds")]
    #[case(90, "About a minute")]
    #[case(3600, "About an hour")]
    #[case(3600 * 30, "30 hours")]
    #[case(86_400 * 3, "3 days")]
    #[case(86_400 * 20, "2 weeks")]
    #[case(86_400 * 100, "3 months")]
    #[case(86_400 * 1000, "2 years")]
    fn ages_are_those_of_docker(#[case] seconds: i64, #[case] text: &str) {
        assert_eq!(duration(seconds), text);
    }
}
