//! The command line of passt.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Command;

use rustix::fs::{Mode, fchmod};

use super::PasstSettings;
use crate::config::{Protocol, PublishConfig, UserAddresses, range};
use crate::helper::confine;

/// The command that serves the guest by `socket`, and writes to `ready` when it is ready.
pub(super) fn command(
    program: &Path,
    settings: PasstSettings<'_>,
    socket: OwnedFd,
    ready: OwnedFd,
) -> io::Result<Command> {
    // As root, passt becomes the user `nobody` before it opens the file to write its process ID to.
    fchmod(&ready, Mode::WUSR | Mode::WGRP | Mode::WOTH)?;
    let mut command = Command::new(program);
    command.args(["--foreground", "--quiet", "--stderr"]);
    // With a socket that is given to it, passt ends when the socket is closed.
    command.arg("--fd").arg(socket.as_raw_fd().to_string());
    command.arg("--pid").arg(format!("/proc/self/fd/{}", ready.as_raw_fd()));
    command.args(options(settings));
    confine(&mut command, vec![socket, ready]);
    Ok(command)
}

fn options(settings: PasstSettings<'_>) -> Vec<String> {
    let mut options = vec!["--mtu".to_owned(), settings.mtu.to_string()];
    if !settings.reaches_host {
        options.push("--no-map-gw".to_owned());
    }
    if let Some(UserAddresses { guest, prefix, router, resolver }) = settings.addresses {
        let pairs = [("--address", guest), ("--gateway", router), ("--dns-forward", resolver)];
        options.extend(pairs.into_iter().flat_map(|(flag, address)| [flag.to_owned(), address.to_string()]));
        options.extend(["--netmask".to_owned(), prefix.to_string()]);
        // The guest is told all of it.
        options.extend(["--ipv4-only", "--no-dhcp"].map(str::to_owned));
    }
    for publish in settings.published {
        let flag = match publish.protocol {
            Protocol::Tcp => "--tcp-ports",
            Protocol::Udp => "--udp-ports",
        };
        options.extend([flag.to_owned(), specification(publish)]);
    }
    options
}

/// A published port in passt's syntax.
fn specification(publish: &PublishConfig) -> String {
    let ports = format!("{}:{}", range(&publish.host), range(&publish.guest));
    match publish.address {
        Some(IpAddr::V4(address)) => format!("{address}/{ports}"),
        Some(IpAddr::V6(address)) => format!("{address}/{ports}"),
        None => ports,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_written_in_passts_syntax() {
        let publish = |text: &str| text.parse::<PublishConfig>().unwrap();
        let published = [publish("[::1]:8080:80"), publish("127.0.0.1:1-3:11-13/udp"), publish("22:22")];
        let options = |reaches_host| {
            options(PasstSettings { mtu: 1400, reaches_host, addresses: None, published: &published })
        };
        assert_eq!(
            options(false).join(" "),
            "--mtu 1400 --no-map-gw --tcp-ports ::1/8080:80 --udp-ports 127.0.0.1/1-3:11-13 --tcp-ports 22:22"
        );
        assert!(!options(true).contains(&"--no-map-gw".to_owned()));
        let addresses = UserAddresses {
            guest: [10, 0, 2, 100].into(),
            prefix: 24,
            router: [10, 0, 2, 2].into(),
            resolver: [10, 0, 2, 3].into(),
        };
        let settings =
            PasstSettings { mtu: 1400, reaches_host: true, addresses: Some(addresses), published: &[] };
        assert_eq!(
            super::options(settings).join(" "),
            "--mtu 1400 --address 10.0.2.100 --gateway 10.0.2.2 --dns-forward 10.0.2.3 --netmask 24 --ipv4-only --no-dhcp"
        );
    }
}
