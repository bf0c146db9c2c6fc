//! How a program is installed on this host.

use std::{env, fs};

use crate::Remedy;

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
    /// What builds it there.
    pub build: Option<Build>,
}

/// How a program is built where there is no package.
#[derive(Debug)]
pub struct Build {
    /// Debian's packages that it needs.
    pub packages: &'static [&'static str],
    /// The program that builds it; where it is missing, there is none.
    pub builder: &'static str,
    /// The command.
    pub command: &'static str,
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

    /// Commands that install it on this host, where there are any.
    pub(super) fn remedies(&self, name: &'static str) -> Vec<Remedy> {
        let search = env::var_os("PATH").unwrap_or_default();
        let has =
            |program: &str| env::split_paths(&search).any(|directory| directory.join(program).is_file());
        self.remedies_for(name, &fs::read_to_string(OS_RELEASE).unwrap_or_default(), has)
    }

    fn remedies_for(&self, name: &'static str, os_release: &str, has: impl Fn(&str) -> bool) -> Vec<Remedy> {
        let distribution = Distribution::read(os_release);
        let Some(installer) = distribution.ids.iter().find_map(|id| unattended(id)) else {
            return Vec::new();
        };
        if !self.is_missing_from(&distribution) {
            return vec![Remedy::Package { installer, name }];
        }
        let Some(build) = self.build.as_ref().filter(|build| has(build.builder)) else { return Vec::new() };
        let packages = build.packages.iter().map(|name| Remedy::Package { installer, name });
        packages.chain([Remedy::User(build.command.to_owned())]).collect()
    }

    fn is_missing_from(&self, distribution: &Distribution<'_>) -> bool {
        self.since.iter().any(|(id, since)| {
            distribution.ids.first() == Some(id)
                && distribution.version.is_some_and(|version| version < *since)
        })
    }

    fn advice_for(&self, name: &str, os_release: &str) -> String {
        let distribution = Distribution::read(os_release);
        if self.is_missing_from(&distribution) {
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

/// The same command, which asks nothing.
fn unattended(id: &str) -> Option<&'static str> {
    Some(match installer(id)? {
        "apt install" => "apt-get install -y",
        "dnf install" => "dnf install -y",
        "pacman -S" => "pacman -S --noconfirm",
        "zypper install" => "zypper --non-interactive install",
        other => other,
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

    const PACKAGE: Package = Package {
        since: &[("debian", (13, 0)), ("ubuntu", (23, 4))],
        otherwise: "build it",
        build: Some(BUILD),
    };
    const BUILD: Build =
        Build { packages: &["gcc", "libx-dev"], builder: "rustup", command: "cargo install x" };

    #[rstest]
    #[case("VERSION_ID=\"13\"\nID=debian\n", true, "apt-get install -y x")]
    #[case("ID=fedora\n", true, "dnf install -y x")]
    #[case(
        "VERSION_ID=\"12\"\nID=debian\n",
        true,
        "apt-get install -y gcc, apt-get install -y libx-dev, cargo install x"
    )]
    #[case("VERSION_ID=\"12\"\nID=debian\n", false, "")]
    #[case("ID=nixos\n", true, "")]
    fn commands_install_it_where_there_are_some(
        #[case] os_release: &str,
        #[case] has_builder: bool,
        #[case] expected: &str,
    ) {
        let remedies = PACKAGE.remedies_for("x", os_release, |_| has_builder);
        let commands = remedies.into_iter().map(|remedy| match remedy {
            Remedy::Package { installer, name } => format!("{installer} {name}"),
            Remedy::Root(command) | Remedy::User(command) => command,
        });
        assert_eq!(commands.collect::<Vec<_>>().join(", "), expected);
    }

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
