//! How much memory all connections together may need.

/// What connections share. A host process that does not read makes the device keep what the guest sends.
const TOTAL: u64 = 128 << 20;
/// What a connection gets while there is plenty: the size that Linux has, too.
const MOST: u64 = 256 << 10;
/// What a connection gets at least. It bounds the excess over [`TOTAL`], for the number of connections is bounded.
const LEAST: u64 = 16 << 10;

/// Gives each connection its share: the more there are, the less a further one gets.
#[derive(Debug, Default)]
pub(super) struct Pool {
    given: u64,
}

impl Pool {
    /// The size of the buffer of one more connection, in bytes.
    pub(super) fn take(&mut self) -> u32 {
        let left = TOTAL.saturating_sub(self.given);
        let size = (left / 256).clamp(LEAST, MOST);
        self.given += size;
        u32::try_from(size).unwrap_or(u32::MAX)
    }

    /// Takes back what a connection got.
    pub(super) fn give_back(&mut self, size: u32) {
        self.given = self.given.saturating_sub(size.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_shrink_but_each_gets_one_and_all_come_back() {
        let mut pool = Pool::default();
        let shares: Vec<u32> = (0..4096).map(|_| pool.take()).collect();
        assert_eq!(shares[0], 256 << 10);
        assert_eq!(shares[4095], 16 << 10);
        assert!(shares.is_sorted_by(|a, b| a >= b));
        assert!(shares.iter().map(|&share| u64::from(share)).sum::<u64>() <= TOTAL + 4096 * LEAST);
        shares.into_iter().for_each(|share| pool.give_back(share));
        assert_eq!(pool.given, 0);
    }
}
