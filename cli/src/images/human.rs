//! Sizes and times as docker shows them.

use instance::time;

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

/// A time in seconds since 1970, as Go writes it: `2024-05-06 07:08:09 +0000 UTC`.
fn date(seconds: i64) -> String {
    let [year, month, day, hour, minute, second] = time::civil(seconds);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} +0000 UTC")
}

/// [`date`] of `created` (RFC 3339); `N/A` where it is not a time.
pub fn date_of(created: Option<&str>) -> String {
    created.and_then(time::parse_seconds).map_or_else(|| "N/A".into(), date)
}

/// How long ago `created` (RFC 3339) was, as in `3 weeks ago`; `N/A` where it is not a time.
pub fn age(created: Option<&str>) -> String {
    let Some(then) = created.and_then(time::parse_seconds) else { return "N/A".into() };
    let now = i64::try_from(time::since_1970().as_secs()).unwrap_or(i64::MAX);
    format!("{} ago", duration(now.saturating_sub(then).max(0)))
}

/// A number of seconds as docker shows it, as in `3 weeks`.
pub fn duration(seconds: i64) -> String {
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
    #[case(0, "1970-01-01 00:00:00 +0000 UTC")]
    #[case(1_709_210_096, "2024-02-29 12:34:56 +0000 UTC")]
    #[case(-62_135_596_800, "0001-01-01 00:00:00 +0000 UTC")]
    fn dates_are_those_of_go(#[case] seconds: i64, #[case] text: &str) {
        assert_eq!(date(seconds), text);
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
