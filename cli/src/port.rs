//! `mvm port`.

use clap::Args;
use serde_json::Value;

use crate::process::ExitCode;
use crate::targets::{self, complain_of};
use crate::{complain, exit_code, print};

const EXAMPLES: &str = "\
Examples:
  mvm port web
  mvm port web 80
  mvm port web 53/udp";

/// Arguments of `mvm port`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct PortCommand {
    /// ID, beginning of an ID, or name
    #[arg(value_name = "NAME")]
    container: String,

    /// A port of the container, as in 80 or 53/udp
    #[arg(value_name = "PORT", value_parser = port)]
    port: Option<String>,
}

/// Reads `PORT[/PROTOCOL]`.
fn port(text: &str) -> Result<String, String> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let is_port = number.parse::<u16>().is_ok_and(|number| number > 0);
    if is_port && ["tcp", "udp"].contains(&protocol) {
        Ok(format!("{number}/{protocol}"))
    } else {
        Err(format!("invalid port {text:?}: write 80 or 53/udp"))
    }
}

impl PortCommand {
    /// Prints where the host has the ports of a container.
    pub fn run(self) -> ExitCode {
        let kept = match targets::kept(&self.container) {
            Ok(kept) => kept,
            Err(error) => return complain_of(&self.container, &error.into()).into(),
        };
        // None are published any more where it has ended.
        let ports = kept.entry.details.pointer("/NetworkSettings/Ports").filter(|_| kept.is_running);
        let lines = lines(ports.unwrap_or(&Value::Null), self.port.as_deref());
        if let Some(port) = self.port.filter(|_| lines.is_empty()) {
            complain(&format!("{}: port {port} is not published: `mvm port {0}` lists them", self.container));
            return exit_code::FAILURE.into();
        }
        print(lines.concat().as_bytes(), exit_code::SUCCESS)
    }
}

/// A line for each port of the host: for `port`, or for all with the container's in front.
fn lines(ports: &Value, port: Option<&str>) -> Vec<String> {
    let text = |binding: &Value, key: &str| {
        binding.get(key).and_then(Value::as_str).map(str::to_owned).unwrap_or_default()
    };
    let all = ports.as_object().into_iter().flatten();
    let wanted = all.filter(|(name, _)| port.is_none_or(|port| port == name.as_str()));
    let of = |(name, bindings): (&String, &Value)| {
        let front = if port.is_some() { String::new() } else { format!("{name} -> ") };
        let line = move |binding: &Value| {
            format!("{front}{}:{}\n", text(binding, "HostIp"), text(binding, "HostPort"))
        };
        bindings.as_array().into_iter().flatten().map(line).collect::<Vec<_>>()
    };
    wanted.flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ports_are_those_that_are_published() {
        let ports = json!({
            "53/udp": [{"HostIp": "127.0.0.1", "HostPort": "5353"}],
            "80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}, {"HostIp": "0.0.0.0", "HostPort": "8081"}],
        });
        let all = ["53/udp -> 127.0.0.1:5353\n", "80/tcp -> 0.0.0.0:8080\n", "80/tcp -> 0.0.0.0:8081\n"];
        assert_eq!(lines(&ports, None), all);
        assert_eq!(lines(&ports, Some("53/udp")), ["127.0.0.1:5353\n"]);
        assert!(lines(&ports, Some("53/tcp")).is_empty() && lines(&Value::Null, None).is_empty());
        assert_eq!(port("80"), Ok("80/tcp".into()));
        assert!(["", "0", "80/sctp", "x", "80/"].into_iter().all(|text| port(text).is_err()));
    }
}
