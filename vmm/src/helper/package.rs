//! How a program is installed on this host.

use std::fs;

/// Where the distribution says what it is (os-release(5)).
const OS_RELEASE: &str = "/etc/os-release";

/// The package of a program, which has the program's name in all distributions.
#[derive(Debug)]
pub struct Package {
    /// The first versions of distributions that have it, by `ID` of os-release(5); other distributions are taken to
    /// have it.
    pub since: &'static [(&'static str, Version)],
    /// What to do where the distribution is older than that.
    pub otherwise: &'static str,
}

/// A distribution's version: 12 is (12, 0), 24.04 is (24, 4).
pub type Version = (u32, u32);

/// A distribution, as os-release(5) describes it.
struct Distribution<'a> {
    /// `ID`, then those of `ID_LIKE`.
    ids: Vec<&'a str>,
    version: Option<Version>,
    name: &'a str,
}

impl Package {
    /// How to install the package `name` on this host, to follow a colon.
    pub(super) fn advice(&self, name: &str) -> String {
        self.advice_for(name, &fs::read_to_string(OS_RELEASE).unwrap_or_default())
    }

    fn advice_for(&self, name: &str, os_release: &str) -> String {
        let distribution = Distribution::read(os_release);
        let is_older = |(id, since): &(&str, Version)| {
            distribution.ids.first() == Some(id)
                && distribution.version.is_some_and(|version| version < *since)
        };
        if self.since.iter().any(is_older) {
            return format!("{} has no package {name}, so {}", distribution.name, self.otherwise);
        }
        match distribution.ids.iter().find_map(|id| installer(id)) {
            Some(installer) => format!("`{installer} {name}`"),
            None => format!("install the package {name}"),
        }
    }
}

fn installer(id: &str) -> Option<&'static str> {
    Some(match id {
        "debian" | "ubuntu" => "apt install",
        "fedora" | "rhel" | "centos" => "dnf install",
        "arch" => "pacman -S",
        "alpine" => "apk add",
        "suse" | "opensuse" => "zypper install",
        _ => return None,
    })
}

impl<'a> Distribution<'a> {
    fn read(os_release: &'a str) -> Self {
        let value = |key: &str| {
            let line = os_release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            line.unwrap_or_default().trim().trim_matches(['"', '\''])
        };
        let ids = [value("ID"), value("ID_LIKE")];
        let version = value("VERSION_ID");
        let (major, minor) = version.split_once('.').unwrap_or((version, "0"));
        Self {
            ids: ids.into_iter().flat_map(str::split_whitespace).collect(),
            version: major.parse().ok().zip(minor.parse().ok()),
            name: value("PRETTY_NAME"),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const PACKAGE: Package =
        Package { since: &[("debian", (13, 0)), ("ubuntu", (23, 4))], otherwise: "build it" };

    #[rstest]
    #[case(
        "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\nID=debian\n",
        "Debian GNU/Linux 12 (bookworm) has no package x, so build it"
    )]
    #[case("VERSION_ID=\"13\"\nID=debian\n", "`apt install x`")]
    #[case("PRETTY_NAME=\"Debian GNU/Linux forky/sid\"\nID=debian\n", "`apt install x`")]
    #[case(
        "PRETTY_NAME='Ubuntu 22.04'\nID=ubuntu\nID_LIKE=debian\nVERSION_ID='22.04'\n",
        "Ubuntu 22.04 has no package x, so build it"
    )]
    #[case("ID=ubuntu\nID_LIKE=debian\nVERSION_ID=\"24.04\"\n", "`apt install x`")]
    // The versions of a derived distribution are its own.
    #[case("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\nVERSION_ID=\"22\"\n", "`apt install x`")]
    #[case("ID=fedora\nVERSION_ID=43\n", "`dnf install x`")]
    #[case("ID=\"opensuse-leap\"\nID_LIKE=\"suse opensuse\"\n", "`zypper install x`")]
    #[case("ID=nixos\n", "install the package x")]
    #[case("", "install the package x")]
    fn each_distribution_has_its_way(#[case] os_release: &str, #[case] expected: &str) {
        assert_eq!(PACKAGE.advice_for("x", os_release), expected);
    }
}
