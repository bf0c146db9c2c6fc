//! What a user says of what a container may use.

use clap::Args;
use container::{CpuSet, RunOptions, Ulimit};
use vmm::MemorySize;

use crate::complain;
use crate::defaults::Defaults;
use crate::values::check_memory;

/// Limits of a container.
#[derive(Args)]
pub struct ResourceArguments {
    /// Limit memory, as in 512m
    #[arg(long, short, value_name = "SIZE", help_heading = "Resources")]
    memory: Option<MemorySize>,

    /// Limit processor time, as in 1.5
    #[arg(long, value_name = "N", value_parser = milli_cpus, help_heading = "Resources")]
    pub cpus: Option<u64>,

    /// Limit processes and threads
    #[arg(
        long,
        value_name = "N",
        hide_short_help = true,
        allow_negative_numbers = true,
        help_heading = "Resources"
    )]
    pids_limit: Option<i64>,

    /// Set the size of /dev/shm
    #[arg(long, value_name = "SIZE", hide_short_help = true, help_heading = "Resources")]
    shm_size: Option<MemorySize>,

    /// Use these CPUs of the VM, as in 0-2,5
    ///
    /// The VM has as many as it takes.
    #[arg(long, value_name = "CPUS", hide_short_help = true, help_heading = "Resources")]
    cpuset_cpus: Option<CpuSet>,

    /// Set the share of the processors beside other control groups: 2 to 262144
    #[arg(long, short, value_name = "N", hide_short_help = true, help_heading = "Resources")]
    cpu_shares: Option<u64>,

    /// Keep this much memory when the VM runs short of it
    #[arg(long, value_name = "SIZE", hide_short_help = true, help_heading = "Resources")]
    memory_reservation: Option<MemorySize>,

    /// Limit memory and swap: the same as --memory, as the VM has no swap
    #[arg(long, value_name = "SIZE", value_parser = swap, hide_short_help = true, allow_negative_numbers = true, help_heading = "Resources")]
    memory_swap: Option<Swap>,

    /// Set how soon the kernel kills it when memory runs out: -1000 to 1000
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(i16).range(-1000..=1000),
        hide_short_help = true,
        allow_negative_numbers = true,
        help_heading = "Resources"
    )]
    oom_score_adj: Option<i16>,

    /// Limit what each process uses: NAME=SOFT or NAME=SOFT:HARD, as in nofile=1024
    ///
    /// Names: core, cpu, data, fsize, locks, memlock, msgqueue, nice, nofile, nproc, rss, rtprio, rttime, sigpending,
    /// stack. -1 is no limit.
    #[arg(long, value_name = "LIMIT", hide_short_help = true, help_heading = "Resources")]
    ulimit: Vec<Ulimit>,
}

/// Memory and swap together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swap {
    Unlimited,
    Bytes(u64),
}

/// Reads a size, or -1.
pub fn swap(text: &str) -> Result<Swap, String> {
    match text {
        "-1" => Ok(Swap::Unlimited),
        _ => {
            text.parse().map(|size: MemorySize| Swap::Bytes(size.bytes())).map_err(|error| error.to_string())
        }
    }
}

/// Reads a number of CPUs with up to three digits behind the point, in thousandths.
pub fn milli_cpus(text: &str) -> Result<u64, String> {
    let error = || format!("invalid number of CPUs {text:?}: use 0.01 to {}, as in 1.5", vmm::MAX_CPUS);
    let number: f64 = text.parse().map_err(|_| error())?;
    let most = f64::from(vmm::MAX_CPUS);
    if !(0.01..=most).contains(&number) {
        return Err(error());
    }
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is between 10 and 254,000"
    )]
    Ok((number * 1000.0).round() as u64)
}

/// What to tell the user of `swap` beside a limit of memory, if anything.
///
/// # Errors
///
/// A line for the user.
pub fn note(swap: Option<Swap>, memory: Option<u64>) -> Result<Option<&'static str>, String> {
    match (swap, memory) {
        (None | Some(Swap::Unlimited | Swap::Bytes(0)), _) => Ok(None),
        (Some(Swap::Bytes(_)), None) => Err("--memory-swap needs --memory: add it".into()),
        (Some(Swap::Bytes(swap)), Some(memory)) if swap < memory => {
            Err("--memory-swap is memory and swap together: use the size of --memory or more, or -1".into())
        }
        (Some(Swap::Bytes(swap)), Some(memory)) if swap > memory => {
            Ok(Some("--memory-swap is as if it were the size of --memory: there is no swap in the VM"))
        }
        _ => Ok(None),
    }
}

impl ResourceArguments {
    /// Adds them to `options`; what they do not say is that of `defaults`.
    ///
    /// # Errors
    ///
    /// A line for the user.
    pub fn add_to(self, options: RunOptions, defaults: &Defaults) -> Result<RunOptions, String> {
        let memory = self.memory.or(defaults.memory).map(MemorySize::bytes).filter(|bytes| *bytes > 0);
        check_memory(memory)?;
        if let Some(note) = note(self.memory_swap, memory)? {
            complain(note);
        }
        Ok(RunOptions {
            memory,
            milli_cpus: self.cpus.or(defaults.cpus),
            pids: self.pids_limit.and_then(|most| u64::try_from(most).ok()).filter(|most| *most > 0),
            shm_size: self.shm_size.map(MemorySize::bytes),
            cpu_set: self.cpuset_cpus,
            cpu_shares: self.cpu_shares.filter(|shares| *shares > 0),
            memory_reservation: self.memory_reservation.map(MemorySize::bytes).filter(|bytes| *bytes > 0),
            oom_score_adjustment: self.oom_score_adj,
            limits: self.ulimit,
            ..options
        })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("1.5", Ok(1500))]
    #[case("0.01", Ok(10))]
    #[case("254", Ok(254_000))]
    #[case("0", Err(()))]
    #[case("nan", Err(()))]
    #[case("1e9", Err(()))]
    #[case("x", Err(()))]
    fn cpus_are_read_as_docker_reads_them(#[case] text: &str, #[case] expected: Result<u64, ()>) {
        assert_eq!(milli_cpus(text).map_err(drop), expected);
    }

    #[rstest]
    #[case("-1", None, Ok(false))]
    #[case("0", None, Ok(false))]
    #[case("64m", Some(64 << 20), Ok(false))]
    #[case("65m", Some(64 << 20), Ok(true))]
    #[case("63m", Some(64 << 20), Err("or more, or -1"))]
    #[case("64m", None, Err("needs --memory"))]
    fn there_is_no_swap(
        #[case] text: &str,
        #[case] memory: Option<u64>,
        #[case] expected: Result<bool, &str>,
    ) {
        let noted = note(Some(swap(text).unwrap()), memory).map(|note| note.is_some());
        match (noted, expected) {
            (Err(error), Err(says)) => assert!(error.contains(says), "{error}"),
            (noted, expected) => assert_eq!(noted.ok(), expected.ok()),
        }
    }

    #[rstest]
    #[case("0", Ok(None))]
    #[case("6m", Ok(Some(6 << 20)))]
    #[case("5", Err("use 6m or more"))]
    #[case("6143k", Err("use 6m or more"))]
    fn memory_has_dockers_minimum(#[case] text: &str, #[case] expected: Result<Option<u64>, &str>) {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            resources: ResourceArguments,
        }
        let line = <Line as clap::Parser>::try_parse_from(["run", "-m", text]).unwrap();
        let options = line.resources.add_to(RunOptions::default(), &Defaults::default());
        match (options, expected) {
            (Ok(options), expected) => assert_eq!(Ok(options.memory), expected),
            (Err(error), expected) => assert!(error.contains(expected.unwrap_err()), "{error}"),
        }
    }

    #[test]
    fn other_amounts_of_swap_are_refused() {
        assert!(swap("-2").is_err() && swap("x").is_err());
    }
}
