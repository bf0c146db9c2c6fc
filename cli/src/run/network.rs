//! What a user says of a container's network.

use std::net::IpAddr;

use clap::Args;
use container::{ExposedPorts, HOST_GATEWAY, NetworkOption, PortMapping, RunOptions};
use vmm::MacAddress;

/// The options of a container's network and names.
#[derive(Args)]
pub struct NetworkArguments {
    /// Connect the container: user, none, or user,host
    ///
    /// user: to the host's networks, by passt, without root. With host as well, host.docker.internal is the host's
    /// loopback. Without this option it is user where passt is installed and the host has a network.
    ///
    /// tap=NAME, a tap that exists, and bridge=NAME, a new port of a bridge, take the container's address:
    /// bridge=br0,ip=192.168.1.5/24,gateway=192.168.1.1.
    #[arg(help_heading = "Network", long, value_name = "NET", alias = "net")]
    network: Option<NetworkOption>,

    /// Publish a port on the host: 8080:80
    ///
    /// As in 8080:80, 127.0.0.1:8080:80, 53:53/udp or 8000-8010:8000-8010. With 80 or 127.0.0.1::80 the host's port is
    /// any that is free, with 8000-8010:80 the first that is.
    #[arg(help_heading = "Network", long, short, value_name = "PORTS")]
    publish: Vec<PortMapping>,

    /// Publish all exposed ports on free ports of the host
    #[arg(help_heading = "Network", long, short = 'P', hide_short_help = true)]
    publish_all: bool,

    /// Expose a port, for -P, beside those of the image
    #[arg(help_heading = "Network", long, value_name = "PORTS", hide_short_help = true)]
    expose: Vec<ExposedPorts>,

    /// Set the host name
    #[arg(help_heading = "Network", long, short = 'h', value_name = "NAME", hide_short_help = true)]
    hostname: Option<String>,

    /// Set the domain of the host name
    #[arg(help_heading = "Network", long, value_name = "NAME", hide_short_help = true)]
    domainname: Option<String>,

    /// Add a line to /etc/hosts: NAME:IP
    ///
    /// NAME:host-gateway is the host's loopback.
    #[arg(help_heading = "Network", long, value_name = "HOST", value_parser = host, hide_short_help = true)]
    add_host: Vec<(String, String)>,

    /// Set a resolver's address
    #[arg(help_heading = "Network", long, value_name = "IP", hide_short_help = true)]
    dns: Vec<IpAddr>,

    /// Set a domain that names are looked up in
    #[arg(help_heading = "Network", long, value_name = "DOMAIN", value_parser = word, hide_short_help = true)]
    dns_search: Vec<String>,

    /// Set an option of resolv.conf
    #[arg(help_heading = "Network", long, value_name = "OPTION", value_parser = word, alias = "dns-opt", hide_short_help = true)]
    dns_option: Vec<String>,

    /// Set the address of the network card
    #[arg(help_heading = "Network", long, value_name = "MAC", hide_short_help = true)]
    mac_address: Option<MacAddress>,

    /// Not by itself: the address is a part of --network
    #[arg(help_heading = "Network", long, value_name = "IP", hide_short_help = true)]
    ip: Option<String>,
}

/// Reads `NAME:IP`, as in `db:10.0.0.2`.
pub fn host(text: &str) -> Result<(String, String), String> {
    let error = || format!("invalid host {text:?}: write NAME:IP, as in db:10.0.0.2, or NAME:host-gateway");
    let (name, address) = text.split_once([':', '=']).ok_or_else(error)?;
    let plain = address.trim_start_matches('[').trim_end_matches(']');
    if plain != HOST_GATEWAY {
        plain.parse::<IpAddr>().map_err(|_| error())?;
    }
    let is_name = !name.is_empty() && !name.contains(char::is_whitespace);
    if is_name { Ok((name.to_owned(), plain.to_owned())) } else { Err(error()) }
}

/// Reads a word of a line of resolv.conf(5).
pub fn word(text: &str) -> Result<String, String> {
    let is_word = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    if is_word { Ok(text.to_owned()) } else { Err(format!("invalid word {text:?}: leave spaces out")) }
}

/// The network of a container or pod for which none is given.
pub fn default_network(publishes: bool) -> NetworkOption {
    if publishes || vmm::has_user_network() {
        NetworkOption::User { reaches_host: false }
    } else {
        NetworkOption::None
    }
}

impl NetworkArguments {
    /// The first option that is given.
    pub fn first(&self) -> Option<&'static str> {
        let given = [
            (!self.publish.is_empty(), "--publish"),
            (self.publish_all, "--publish-all"),
            (self.network.is_some(), "--network"),
            (self.hostname.is_some(), "--hostname"),
            (self.domainname.is_some(), "--domainname"),
            (!self.add_host.is_empty(), "--add-host"),
            (!self.dns.is_empty(), "--dns"),
            (!self.dns_search.is_empty(), "--dns-search"),
            (!self.dns_option.is_empty(), "--dns-option"),
            (self.mac_address.is_some(), "--mac-address"),
            (self.ip.is_some(), "--ip"),
        ];
        given.into_iter().find(|(is_given, _)| *is_given).map(|(_, name)| name)
    }

    /// Adds them to a container's options. `default` is the network where none is given.
    ///
    /// # Errors
    ///
    /// A line for the user.
    pub fn add_to(self, options: RunOptions, default: Option<NetworkOption>) -> Result<RunOptions, String> {
        if let Some(ip) = self.ip {
            return Err(format!(
                "--ip is a part of --network: write \
                 --network bridge=NAME,ip={ip}/24"
            ));
        }
        let publishes = self.publish_all || !self.publish.is_empty();
        let network = self.network.or(default).unwrap_or_else(|| default_network(publishes));
        Ok(RunOptions {
            publish: self.publish,
            publish_all: self.publish_all,
            exposed: self.expose,
            hostname: self.hostname,
            domain: self.domainname,
            hosts: self.add_host,
            dns: self.dns,
            dns_search: self.dns_search,
            dns_options: self.dns_option,
            mac: self.mac_address,
            network,
            ..options
        })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("db:10.0.0.2", Ok(("db", "10.0.0.2")))]
    #[case("db=::1", Ok(("db", "::1")))]
    #[case("db:[::1]", Ok(("db", "::1")))]
    #[case("up:host-gateway", Ok(("up", "host-gateway")))]
    #[case("db", Err(()))]
    #[case(":1.2.3.4", Err(()))]
    #[case("db:x", Err(()))]
    fn hosts_are_names_and_addresses(#[case] text: &str, #[case] expected: Result<(&str, &str), ()>) {
        let expected = expected.map(|(name, address)| (name.to_owned(), address.to_owned()));
        assert_eq!(host(text).map_err(drop), expected);
    }

    #[test]
    fn words_have_no_spaces() {
        assert_eq!(word("ndots:2"), Ok("ndots:2".into()));
        assert!(["", "a b", "a\nnameserver 1.1.1.1"].into_iter().all(|text| word(text).is_err()));
    }
}
