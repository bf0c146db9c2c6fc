//! The real-time clock of a PC (MC146818): the time of day at ports 0x70 and 0x71.

use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::{BusDevice, Section, Suspend, SuspendError, lock};

/// Registers of the MC146818, by their index.
mod index {
    pub(super) const SECONDS: u8 = 0x00;
    pub(super) const MINUTES: u8 = 0x02;
    pub(super) const HOURS: u8 = 0x04;
    pub(super) const WEEKDAY: u8 = 0x06;
    pub(super) const DAY: u8 = 0x07;
    pub(super) const MONTH: u8 = 0x08;
    pub(super) const YEAR: u8 = 0x09;
    pub(super) const STATUS_B: u8 = 0x0b;
    pub(super) const STATUS_D: u8 = 0x0d;
    pub(super) const CENTURY: u8 = 0x32;
}

/// The bits of the index port that are the index; bit 7 masks NMIs on a PC.
const INDEX: u8 = 0x7f;
/// Hours count to 24 and no interrupt is enabled; values are in BCD, as PC firmware leaves them.
const STATUS_B_24_HOURS: u8 = 1 << 1;
/// The battery is good, the time valid.
const STATUS_D_VALID: u8 = 1 << 7;

/// What restored states are recognized by.
const KIND: &str = "cmos";
const STATE_VERSION: u32 = 1;

/// A CMOS clock that reads the host's time in UTC. Writes change nothing but the index: a guest can't set the
/// host's clock. Status A never shows an update in progress, so a reader never waits.
#[derive(Default)]
pub struct Cmos {
    index: Mutex<u8>,
}

impl Cmos {
    /// The index port; the data port follows.
    pub const PORT: u16 = 0x70;
    /// Number of ports.
    pub const PORTS: u16 = 2;
}

impl Suspend for Cmos {
    fn suspend(&self) -> Result<(), SuspendError> {
        Ok(())
    }

    /// The time goes on by itself: the selected register is all the state.
    fn save(&self) -> Result<Section, SuspendError> {
        Section::new(KIND, STATE_VERSION, &*lock(&self.index))
    }

    fn restore(&self, section: &Section) -> Result<(), SuspendError> {
        *lock(&self.index) = section.state::<u8>(KIND, STATE_VERSION)? & INDEX;
        Ok(())
    }

    fn resume(&self) -> Result<(), SuspendError> {
        Ok(())
    }
}

impl BusDevice for Cmos {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let ([byte], 1) = (data, offset) else { return };
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        *byte = register(*lock(&self.index), &Utc::from_unix(seconds));
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let ([byte], 0) = (data, offset) {
            *lock(&self.index) = byte & INDEX;
        }
    }
}

fn register(index: u8, time: &Utc) -> u8 {
    match index {
        index::SECONDS => bcd(time.second),
        index::MINUTES => bcd(time.minute),
        index::HOURS => bcd(time.hour),
        index::WEEKDAY => bcd(time.weekday),
        index::DAY => bcd(time.day),
        index::MONTH => bcd(time.month),
        index::YEAR => bcd(time.year % 100),
        index::CENTURY => bcd(time.year / 100),
        index::STATUS_B => STATUS_B_24_HOURS,
        index::STATUS_D => STATUS_D_VALID,
        _ => 0,
    }
}

/// A number below 100, two decimal digits to a byte.
fn bcd(value: u64) -> u8 {
    u8::try_from(value / 10 % 10 * 16 + value % 10).unwrap_or(0)
}

#[derive(Debug, PartialEq)]
struct Utc {
    year: u64,
    month: u64,
    day: u64,
    /// 1 is Sunday.
    weekday: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Utc {
    /// The proleptic Gregorian date, counted from 0000-03-01 so that a leap day ends its year.
    fn from_unix(seconds: u64) -> Self {
        const DAYS_TO_1970: u64 = 719_468;
        const DAYS_IN_400_YEARS: u64 = 146_097;
        let days = seconds / 86_400 + DAYS_TO_1970;
        let era = days / DAYS_IN_400_YEARS;
        let day_of_era = days % DAYS_IN_400_YEARS;
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        Self {
            year: era * 400 + year_of_era + u64::from(month <= 2),
            month,
            day: day_of_year - (153 * month_from_march + 2) / 5 + 1,
            // 1970-01-01 was a Thursday.
            weekday: (seconds / 86_400 + 4) % 7 + 1,
            hour: seconds / 3_600 % 24,
            minute: seconds / 60 % 60,
            second: seconds % 60,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(cmos: &Cmos, index: u8) -> u8 {
        cmos.write(0, &[index]);
        let mut data = [0xff];
        cmos.read(1, &mut data);
        data[0]
    }

    #[test]
    fn a_leap_day_reads_in_bcd() {
        // 2024-02-29 23:59:58 UTC, a Thursday.
        let time = Utc::from_unix(1_709_251_198);
        let indexes = [0x32, 0x09, 0x08, 0x07, 0x06, 0x04, 0x02, 0x00];
        let values = indexes.map(|index| register(index, &time));
        assert_eq!(values, [0x20, 0x24, 0x02, 0x29, 0x05, 0x23, 0x59, 0x58]);
    }

    #[test]
    fn a_driver_finds_a_valid_clock_that_is_not_updating() {
        let cmos = Cmos::default();
        assert_eq!(read(&cmos, 0x0a) & 0x80, 0);
        assert_eq!(read(&cmos, 0x0b), 0x02);
        assert_eq!(read(&cmos, 0x0d), 0x80);
        assert_eq!(read(&cmos, 0x80 | 0x0d), 0x80, "the NMI mask is not part of the index");
        assert_eq!(read(&cmos, 0x32), 0x20);
    }

    #[test]
    fn the_selected_register_outlives_a_suspend() {
        let cmos = Cmos::default();
        cmos.write(0, &[0x0d]);
        cmos.suspend().unwrap();
        let other = Cmos::default();
        other.restore(&cmos.save().unwrap()).unwrap();
        other.resume().unwrap();
        let mut data = [0];
        other.read(1, &mut data);
        assert_eq!(data, [STATUS_D_VALID]);
    }

    proptest! {
        #[test]
        fn dates_agree_with_the_c_library(seconds in 0..253_402_300_800_u64) {
            let time = libc::time_t::try_from(seconds).unwrap();
            // SAFETY: both pointers are to live values, and all-zero bytes are a valid `tm`.
            let tm = unsafe {
                let mut tm: libc::tm = std::mem::zeroed();
                assert!(!libc::gmtime_r(&raw const time, &raw mut tm).is_null());
                tm
            };
            let field = |value: i32| u64::try_from(value).unwrap();
            prop_assert_eq!(Utc::from_unix(seconds), Utc {
                year: field(tm.tm_year) + 1900,
                month: field(tm.tm_mon) + 1,
                day: field(tm.tm_mday),
                weekday: field(tm.tm_wday) + 1,
                hour: field(tm.tm_hour),
                minute: field(tm.tm_min),
                second: field(tm.tm_sec),
            });
        }
    }
}
