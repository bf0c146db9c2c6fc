//! Times as text.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds of a day.
const DAY: i64 = 86_400;
/// Times and time spans that are read are below this number of seconds, which is in the year 5138.
const MAX_SECONDS: f64 = 1e11;

/// How long it is since 1970.
pub fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Now, in milliseconds since 1970.
pub fn now() -> u64 {
    u64::try_from(since_1970().as_millis()).unwrap_or(u64::MAX)
}

/// The time that is so long after 1970, as in `2024-02-29T12:34:56.789000000Z` (RFC 3339, UTC).
pub fn rfc3339(time: Duration) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let [year, month, day, hour, minute, second] = civil(seconds);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}Z", time.subsec_nanos())
}

/// Year, month, day, hour, minute and second (UTC) of a time in seconds since 1970, which may be before that.
pub fn civil(seconds: i64) -> [i64; 6] {
    let (days, seconds) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    // Days of the Gregorian calendar since March of the year 0, in eras of 400 years that begin in March.
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year + i64::from(month <= 2);
    [year, month, day, seconds / 3600, seconds / 60 % 60, seconds % 60]
}

/// Reads a time such as `2024-02-29T12:34:56.789+01:00` (RFC 3339). It may end after the day, the hour, the minute or
/// the second; without a zone it is UTC. `None` where it is no time, or before 1970.
pub fn parse_rfc3339(text: &str) -> Option<Duration> {
    let (seconds, nanoseconds) = parse(text)?;
    Some(Duration::new(u64::try_from(seconds).ok()?, nanoseconds))
}

/// Reads the same kinds of times, from the year 0 on, as whole seconds since 1970.
pub fn parse_seconds(text: &str) -> Option<i64> {
    parse(text).map(|(seconds, _)| seconds)
}

/// Reads a point in time as options of docker take it, as how long it is after 1970: seconds since 1970, what
/// [`parse_rfc3339`] reads, or how long before `now`, as in `10m` or `1h30m`.
pub fn parse_point(text: &str, now: Duration) -> Option<Duration> {
    let is_number = text.bytes().all(|byte| byte == b'.' || byte.is_ascii_digit());
    if let Some(seconds) = text.parse::<f64>().ok().filter(|_| is_number) {
        return (seconds < MAX_SECONDS).then(|| Duration::from_secs_f64(seconds));
    }
    parse_duration(text).map(|ago| now.saturating_sub(ago)).or_else(|| parse_rfc3339(text))
}

/// Seconds since 1970, and nanoseconds.
fn parse(text: &str) -> Option<(i64, u32)> {
    let (date, rest) = text.split_at_checked(10)?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    ((1..=12).contains(&month) && (1..=31).contains(&day)).then_some(())?;
    let (clock, zone) = match rest.strip_prefix(['T', 't', ' ']) {
        Some(clock) => clock.split_at(clock.find(['Z', 'z', '+', '-']).unwrap_or(clock.len())),
        None => ("", rest),
    };
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let [hour, minute, second] = match clock.len() {
        0 => [0; 3],
        2 => numbers(clock, ':', [2]).map(|[hour]| [hour, 0, 0])?,
        5 => numbers(clock, ':', [2, 2]).map(|[hour, minute]| [hour, minute, 0])?,
        _ => numbers(clock, ':', [2, 2, 2])?,
    };
    (hour < 24 && minute < 60 && second <= 60).then_some(())?;
    fraction.bytes().all(|byte| byte.is_ascii_digit()).then_some(())?;
    let nanoseconds = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    let offset = match zone.split_at_checked(1) {
        None if zone.is_empty() => 0,
        Some(("Z" | "z", "")) => 0,
        Some((sign @ ("+" | "-"), offset)) => {
            let [hours, minutes] = numbers(offset, ':', [2, 2])?;
            let seconds = hours * 3600 + minutes * 60;
            if sign == "-" { -seconds } else { seconds }
        }
        _ => return None,
    };
    // Days since March of the year 0, in years that begin in March.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    let days = year * 365 + leap_days + (153 * month + 2) / 5 + day - 1 - 719_468;
    Some((days * DAY + hour * 3600 + minute * 60 + second - offset, nanoseconds))
}

/// Reads numbers of these many digits, between which is `sign`.
fn numbers<const N: usize>(text: &str, sign: char, digits: [usize; N]) -> Option<[i64; N]> {
    let mut parts = text.split(sign);
    let mut numbers = [0; N];
    for (number, digits) in numbers.iter_mut().zip(digits) {
        let part = parts.next().filter(|part| part.len() == digits)?;
        *number = part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse().ok()).flatten()?;
    }
    parts.next().is_none().then_some(numbers)
}

/// Reads a time span as Go writes it, in hours, minutes and seconds: `90s`, `10m`, `1h30m`, `1.5h`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let (number, behind) = rest.split_at(rest.find(|sign: char| sign != '.' && !sign.is_ascii_digit())?);
        let (unit, behind) = match behind.strip_prefix("ms") {
            Some(behind) => (0.001, behind),
            None => match behind.split_at_checked(1)? {
                ("h", behind) => (3600.0, behind),
                ("m", behind) => (60.0, behind),
                ("s", behind) => (1.0, behind),
                _ => return None,
            },
        };
        let seconds = Some(number.parse::<f64>().ok()? * unit).filter(|seconds| *seconds < MAX_SECONDS)?;
        total = total.checked_add(Duration::from_secs_f64(seconds))?;
        rest = behind;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("2024-02-29T12:34:56.789Z", Some(1_709_210_096_789))]
    #[case("2024-02-29T12:34:56+01:00", Some(1_709_206_496_000))]
    #[case("2024-02-29 12:34", Some(1_709_210_040_000))]
    #[case("2024-02-29", Some(1_709_164_800_000))]
    #[case("1970-01-01T00:00:00-01:00", Some(3_600_000))]
    #[case("1970-01-01T00:00:00+01:00", None)]
    #[case("2024-02-29T12:34:56.7x9Z", None)]
    #[case("2024-02-29T12", Some(1_709_208_000_000))]
    #[case("2024-02-29Z", Some(1_709_164_800_000))]
    #[case("2024-02-29T12:34:56.7890000001Z", Some(1_709_210_096_789))]
    #[case("2024-02-29T1:34", None)]
    #[case("2024-02-2912:34", None)]
    #[case("2024-13-01T00:00:00Z", None)]
    #[case("2024-02-29T24:00:00Z", None)]
    #[case("yesterday", None)]
    #[case("", None)]
    #[case("2024-02-29T12:34:56+1", None)]
    #[case("2024-02-29T12:34:56\u{e9}", None)]
    #[case("2024-02-2\u{e9}", None)]
    fn times_are_read(#[case] text: &str, #[case] milliseconds: Option<u64>) {
        assert_eq!(parse_rfc3339(text), milliseconds.map(Duration::from_millis));
    }

    #[rstest]
    #[case("1970-01-01T00:00:00Z", Some(0))]
    #[case("2024-02-29T12:34:56.789Z", Some(1_709_210_096))]
    #[case("2024-03-01T00:00:00Z", Some(1_709_251_200))]
    #[case("1969-12-31T23:59:59Z", Some(-1))]
    #[case("0001-01-01T00:00:00Z", Some(-62_135_596_800))]
    #[case("0000-01-01T00:00:00Z", Some(-62_167_219_200))]
    #[case("\u{e9}:\u{e9}", None)]
    fn times_before_1970_are_read_and_written(#[case] text: &str, #[case] expected: Option<i64>) {
        assert_eq!(parse_seconds(text), expected);
        if let Some(seconds) = expected {
            let [year, month, day, hour, minute, second] = civil(seconds);
            let written = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
            assert!(text.starts_with(&written), "{text} {written}");
        }
    }

    #[rstest]
    #[case("10m", Some(9_400_000))]
    #[case("1h30m5s", Some(10_000_000 - 5_405_000))]
    #[case("24h", Some(0))]
    #[case("1234", Some(1_234_000))]
    #[case("1234.5", Some(1_234_500))]
    #[case("10", Some(10_000))]
    #[case("1970-01-02", Some(86_400_000))]
    #[case("1970-01-02T01:02:03", Some(90_123_000))]
    #[case("", None)]
    #[case(".", None)]
    #[case("h", None)]
    #[case("10x", None)]
    #[case("1e3", None)]
    #[case("inf", None)]
    #[case("-5", None)]
    #[case("999999999999", None)]
    #[case("9999999999999999999h", None)]
    #[case("9223372036854775807s9s", None)]
    #[case("yesterday", None)]
    #[case("\u{e9}:\u{e9}", None)]
    fn points_in_time_are_read(#[case] text: &str, #[case] milliseconds: Option<u64>) {
        assert_eq!(parse_point(text, Duration::from_secs(10_000)), milliseconds.map(Duration::from_millis));
    }

    #[rstest]
    #[case("90s", Some(90_000))]
    #[case("1h30m", Some(5_400_000))]
    #[case("1.5h", Some(5_400_000))]
    #[case("20ms", Some(20))]
    #[case("", None)]
    #[case("5", None)]
    #[case("m", None)]
    #[case("5\u{e9}", None)]
    #[case("99999999999999h", None)]
    fn durations_are_those_of_go(#[case] text: &str, #[case] milliseconds: Option<u64>) {
        assert_eq!(parse_duration(text), milliseconds.map(Duration::from_millis));
    }

    #[rstest]
    #[case(0, "1970-01-01T00:00:00.000000005Z")]
    #[case(1_709_210_096, "2024-02-29T12:34:56.000000005Z")]
    #[case(951_782_400, "2000-02-29T00:00:00.000000005Z")]
    #[case(4_107_542_399, "2100-02-28T23:59:59.000000005Z")]
    #[case(4_107_542_400, "2100-03-01T00:00:00.000000005Z")]
    fn times_are_written_as_date_does(#[case] seconds: u64, #[case] text: &str) {
        assert_eq!(rfc3339(Duration::new(seconds, 5)), text);
        let date = std::process::Command::new("date")
            .args(["-u", "-d", &format!("@{seconds}"), "+%Y-%m-%dT%H:%M:%S.000000005Z"])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&date.stdout).trim_end(), text);
    }
}
