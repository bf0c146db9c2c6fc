//! Options of `docker run` that say what every container of mvm's has anyway, and nothing else that could be had:
//! written with those values they are no error, and with others a line says what to use.

use clap::{ArgAction, Args};

use super::milli_cpus;
use crate::complain;

/// What docker's users limit processor time with beside `--cpus`.
#[derive(Args)]
pub struct QuotaArguments {
    /// Limit processor time to this many microseconds of each period, as --cpus does
    #[arg(long, value_name = "MICROSECONDS", allow_negative_numbers = true, hide = true)]
    cpu_quota: Option<i64>,

    /// Set the period of --cpu-quota
    #[arg(long, value_name = "MICROSECONDS", value_parser = period, hide = true)]
    cpu_period: Option<u64>,
}

/// The namespaces of a container, its platform, and its control group.
#[derive(Args)]
pub struct DockerArguments {
    #[command(flatten)]
    quota: QuotaArguments,

    /// Use the memory of these nodes: 0
    #[arg(long, value_name = "NODES", value_parser = nodes, hide = true)]
    cpuset_mems: Option<String>,

    /// Set how soon memory is swapped out: of no effect, as the VM has no swap
    #[arg(
        long,
        value_name = "PERCENT",
        value_parser = clap::value_parser!(i64).range(-1..=100),
        allow_negative_numbers = true,
        hide = true
    )]
    memory_swappiness: Option<i64>,

    /// Set the namespace of IPC: private or shareable
    #[arg(long, value_name = "MODE", value_parser = ipc, hide = true)]
    ipc: Option<String>,

    /// Set the namespace of processes: private
    #[arg(long, value_name = "MODE", value_parser = processes, hide = true)]
    pid: Option<String>,

    /// Set the namespace of the host name: private
    #[arg(long, value_name = "MODE", value_parser = own, hide = true)]
    uts: Option<String>,

    /// Set the namespace of control groups: private
    #[arg(long, value_name = "MODE", value_parser = own, hide = true)]
    cgroupns: Option<String>,

    /// Set the namespace of users: host, which is the VM
    #[arg(long, value_name = "MODE", value_parser = users, hide = true)]
    userns: Option<String>,

    /// Set how the container is isolated: default
    #[arg(long, value_name = "MODE", value_parser = isolation, hide = true)]
    isolation: Option<String>,

    /// Set the platform of the image: linux/amd64
    #[arg(long, value_name = "PLATFORM", value_parser = platform, hide = true)]
    platform: Option<String>,

    /// Do not look at signatures of images, which mvm does not do
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        action = ArgAction::Set,
        default_missing_value = "true",
        hide = true
    )]
    disable_content_trust: Option<bool>,
}

/// Takes `text` where `good` has it; what else it could be is said by `advice`.
fn one_of(text: &str, good: &[&str], advice: &str) -> Result<String, String> {
    if good.contains(&text) { Ok(text.to_owned()) } else { Err(advice.to_owned()) }
}

fn ipc(text: &str) -> Result<String, String> {
    let advice = "a container has a kernel of its own: use private, or a pod for containers that share IPC";
    one_of(text, &["", "private", "shareable"], advice)
}

fn own(text: &str) -> Result<String, String> {
    one_of(text, &["", "private"], "a container has a kernel of its own: use private, or leave it out")
}

fn users(text: &str) -> Result<String, String> {
    one_of(text, &["", "host"], "root of a container is root of its VM: use host, or leave it out")
}

fn processes(text: &str) -> Result<String, String> {
    let advice = "containers see each other's processes in a pod of `mvm pod create --share pid`: use private, or --pod NAME";
    one_of(text, &["", "private"], advice)
}

fn isolation(text: &str) -> Result<String, String> {
    one_of(text, &["", "default"], "each container has a VM of its own: use default, or leave it out")
}

fn nodes(text: &str) -> Result<String, String> {
    one_of(text, &["", "0"], "the memory of a VM is one node: use 0, or leave it out")
}

/// Reads a platform as `docker run --platform` and `docker pull --platform` do, of which there is one.
pub fn platform(text: &str) -> Result<String, String> {
    let advice = "images are for linux/amd64: use that, or leave it out";
    one_of(text, &["linux/amd64", "linux/x86_64", "linux"], advice)
}

fn period(text: &str) -> Result<u64, String> {
    let number = text.parse().ok().filter(|period| *period == 0 || (1000..=1_000_000).contains(period));
    number.ok_or_else(|| format!("invalid period {text:?}: use 1000 to 1000000 microseconds"))
}

impl DockerArguments {
    /// Thousandths of a processor that they allow, where they limit that, or `cpus`; notes what has no effect.
    ///
    /// # Errors
    ///
    /// A line for the user.
    pub fn milli_cpus(&self, cpus: Option<u64>) -> Result<Option<u64>, String> {
        if self.memory_swappiness.is_some_and(|percent| percent > 0) {
            complain("--memory-swappiness has no effect: there is no swap in the VM");
        }
        self.quota.milli_cpus(cpus)
    }
}

impl QuotaArguments {
    /// Thousandths of a processor that they allow, where they limit that, or `cpus`.
    ///
    /// # Errors
    ///
    /// A line for the user.
    pub fn milli_cpus(&self, cpus: Option<u64>) -> Result<Option<u64>, String> {
        let period = self.cpu_period.filter(|period| *period > 0).unwrap_or(100_000);
        let Some(quota) =
            self.cpu_quota.and_then(|quota| u64::try_from(quota).ok()).filter(|quota| *quota > 0)
        else {
            return Ok(cpus);
        };
        if cpus.is_some() {
            return Err("--cpus and --cpu-quota say the same: use one of them".into());
        }
        if quota < 1000 {
            return Err(format!("invalid --cpu-quota {quota}: use 1000 microseconds or more"));
        }
        let milli = quota.saturating_mul(1000).div_ceil(period).max(10);
        // As --cpus has it, with the same bounds.
        milli_cpus(&format!("{}.{:03}", milli / 1000, milli % 1000)).map(Some)
    }

    /// Whether they take a limit away.
    pub fn is_unlimited(&self) -> bool {
        self.cpu_quota.is_some_and(|quota| quota < 0)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        docker: DockerArguments,
    }

    fn parse(words: &str) -> Result<DockerArguments, String> {
        let words = std::iter::once("run").chain(words.split_whitespace());
        let line = <Line as clap::Parser>::try_parse_from(words);
        line.map(|line| line.docker).map_err(|error| error.to_string())
    }

    #[rstest]
    #[case("--cpu-quota 150000", Ok(Some(1500)))]
    #[case("--cpu-quota 50000 --cpu-period 25000", Ok(Some(2000)))]
    #[case("--cpu-quota 1000 --cpu-period 1000000", Ok(Some(10)))]
    #[case("--cpu-quota 0", Ok(None))]
    #[case("--cpu-quota -1", Ok(None))]
    #[case("--cpu-period 50000", Ok(None))]
    #[case("--cpu-quota 999", Err("use 1000 microseconds or more"))]
    #[case("--cpu-quota 99999999999", Err("invalid number of CPUs"))]
    fn a_quota_is_a_number_of_processors(#[case] words: &str, #[case] expected: Result<Option<u64>, &str>) {
        assert_eq!(parse("").unwrap().milli_cpus(Some(5)), Ok(Some(5)));
        match (parse(words).unwrap().milli_cpus(None), expected) {
            (Err(error), Err(says)) => assert!(error.contains(says), "{error}"),
            (result, expected) => assert_eq!(result.ok(), expected.ok(), "{words}"),
        }
    }

    #[rstest]
    #[case("--ipc private --pid private --uts private --cgroupns private --userns host")]
    #[case("--ipc shareable --isolation default --platform linux/amd64 --cpuset-mems 0")]
    #[case("--disable-content-trust")]
    #[case("--disable-content-trust=false --memory-swappiness -1")]
    fn what_is_so_anyway_can_be_said(#[case] words: &str) {
        assert_eq!(parse(words).unwrap().milli_cpus(None), Ok(None));
    }

    #[rstest]
    #[case("--ipc host", "use private, or a pod")]
    #[case("--ipc none", "use private, or a pod")]
    #[case("--pid host", "in a pod of `mvm pod create --share pid`: use private, or --pod NAME")]
    #[case("--pid container:x", "in a pod of `mvm pod create --share pid`: use private, or --pod NAME")]
    #[case("--uts host", "use private, or leave it out")]
    #[case("--cgroupns host", "use private, or leave it out")]
    #[case("--userns keep-id", "use host, or leave it out")]
    #[case("--isolation hyperv", "use default, or leave it out")]
    #[case("--platform linux/arm64", "images are for linux/amd64")]
    #[case("--cpuset-mems 0-1", "use 0, or leave it out")]
    #[case("--cpu-period 999", "use 1000 to 1000000 microseconds")]
    #[case("--memory-swappiness 101", "101")]
    fn other_values_are_refused_with_what_to_use(#[case] words: &str, #[case] says: &str) {
        let Err(error) = parse(words) else { panic!("{words}") };
        assert!(error.contains(says), "{error}");
    }
}
