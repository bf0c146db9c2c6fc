//! How often each part is repeated: as CI does, or as the environment says.
//!
//! `MVM_SOAK_SEED` repeats the moments of an earlier run, as far as the host's speed lets it.

use std::io::Write;
use std::sync::OnceLock;
use std::time::Instant;

/// The number that the variable `MVM_SOAK_NAME` has, or the one that CI uses.
pub fn count(name: &str, in_ci: u64) -> u64 {
    let variable = format!("MVM_SOAK_{name}");
    match std::env::var(&variable) {
        Ok(text) => text.parse().unwrap_or_else(|error| panic!("{variable}={text}: {error}")),
        Err(_) => in_ci,
    }
}

/// That of this run.
pub fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| {
        let time = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis();
        count("SEED", u64::try_from(time % 1_000_000_007).unwrap())
    })
}

/// Numbers that depend on the seed and on what they are for (splitmix64).
pub struct Random(u64);

impl Random {
    pub fn of(part: &str) -> Self {
        let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        Self(part.bytes().fold(seed() ^ 0xcbf2_9ce4_8422_2325, mix))
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end.max(1)
    }
}

/// Prints a line of what was done, past the test harness, which would keep it to itself.
pub fn report(part: &str, count: u64, start: Instant, figures: &str) {
    let (seconds, seed) = (start.elapsed().as_secs_f64(), seed());
    let figures = if figures.is_empty() { String::new() } else { format!("; {figures}") };
    let _ = writeln!(std::io::stderr(), "soak: {part}: {count} in {seconds:.1} s (seed {seed}){figures}");
}
