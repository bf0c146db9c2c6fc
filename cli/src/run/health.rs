//! What a user says of a container's health.

use std::time::Duration;

use clap::Args;
use container::{HealthOptions, SHORTEST_HEALTH_TIME};
use instance::time;

/// The options of health checks.
#[derive(Args)]
pub struct HealthArguments {
    /// Check its health by this line of its shell, in place of the image's check
    #[arg(long, value_name = "COMMAND", help_heading = "Health", hide_short_help = true)]
    health_cmd: Option<String>,

    /// Set the time between two checks, as in 30s
    #[arg(long, value_name = "TIME", value_parser = span, help_heading = "Health", hide_short_help = true)]
    health_interval: Option<Duration>,

    /// Set how long a check may take
    #[arg(long, value_name = "TIME", value_parser = span, help_heading = "Health", hide_short_help = true)]
    health_timeout: Option<Duration>,

    /// Set how many bad checks in a row make it unhealthy
    #[arg(long, value_name = "N", help_heading = "Health", hide_short_help = true)]
    health_retries: Option<u32>,

    /// Set how long bad checks do not count after the start
    #[arg(long, value_name = "TIME", value_parser = span, help_heading = "Health", hide_short_help = true)]
    health_start_period: Option<Duration>,

    /// Set the time between two checks until then
    #[arg(long, value_name = "TIME", value_parser = span, help_heading = "Health", hide_short_help = true)]
    health_start_interval: Option<Duration>,

    /// Do without the image's check
    #[arg(long, conflicts_with = "health_cmd", help_heading = "Health", hide_short_help = true)]
    no_healthcheck: bool,
}

/// The longest time.
const MOST: Duration = Duration::from_secs(365 * 24 * 3600);

/// Reads a time span as Go writes it, with milliseconds as the smallest unit.
fn span(text: &str) -> Result<Duration, String> {
    let milliseconds =
        text.strip_suffix("ms").and_then(|number| number.parse().ok()).map(Duration::from_millis);
    let zero = (text == "0").then_some(Duration::ZERO);
    let span = milliseconds.or(zero).or_else(|| time::parse_duration(text)).filter(|span| *span <= MOST);
    match span {
        Some(span) if !span.is_zero() && span < SHORTEST_HEALTH_TIME => {
            Err(format!("invalid time {text:?}: it has to be 1ms at least, or 0 for docker's default"))
        }
        Some(span) => Ok(span),
        None => Err(format!("invalid time {text:?}: use a number and a unit, as in 30s, 500ms or 1m30s")),
    }
}

impl HealthArguments {
    /// What they say.
    pub fn options(self) -> HealthOptions {
        HealthOptions {
            command: self.health_cmd.filter(|line| !line.is_empty()),
            interval: self.health_interval,
            timeout: self.health_timeout,
            start_period: self.health_start_period,
            start_interval: self.health_start_interval,
            retries: self.health_retries,
            is_off: self.no_healthcheck,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_go() {
        assert_eq!(span("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!((span("500ms"), span("0")), (Ok(Duration::from_millis(500)), Ok(Duration::ZERO)));
        assert_eq!((span("1ms"), span("0s")), (Ok(Duration::from_millis(1)), Ok(Duration::ZERO)));
        assert!(span("0.0009s").unwrap_err().contains("1ms at least"));
        assert!(["", "5", "-1s", "x", "99999h", "0.5ms"].into_iter().all(|text| span(text).is_err()));
    }
}
