//! Tables: columns as wide as their widest cell.

use std::fmt;

/// A table with a heading.
pub struct Table(Vec<Vec<String>>);

impl Table {
    /// A table with these columns and no row.
    pub fn new(heading: &[&str]) -> Self {
        Self(vec![heading.iter().map(ToString::to_string).collect()])
    }

    /// Adds a row. Control characters, which a path may contain, are escaped.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let without_controls = |cell: String| {
            cell.chars()
                .flat_map(|character| {
                    let control = character.is_control();
                    let plain = (!control).then_some(character);
                    let escaped = control.then(|| character.escape_default()).into_iter().flatten();
                    plain.into_iter().chain(escaped)
                })
                .collect()
        };
        self.0.push(cells.into_iter().map(without_controls).collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.0.iter().map(Vec::len).max().unwrap_or(0);
        let widest = |column| {
            self.0.iter().filter_map(|row| row.get(column)).map(|cell: &String| cell.chars().count()).max()
        };
        let widths: Vec<usize> = (0..columns).map(|column| widest(column).unwrap_or(0)).collect();
        for row in &self.0 {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line += &format!("{cell:<width$}   ");
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A time in the two largest units that it has.
pub fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{}s", seconds % 60),
        3600..86400 => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

/// A number of bytes, short.
pub fn bytes(count: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match UNITS.iter().find(|(_, shift)| count >> shift > 0) {
        Some((unit, shift)) => {
            let tenths = (u128::from(count) * 10) >> shift;
            format!("{}.{}{unit}", tenths / 10, tenths % 10)
        }
        None => format!("{count}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let mut table = Table::new(&["A", "LONG"]);
        table.row(["wide".into(), "é".into()]);
        table.row(["x".into(), String::new()]);
        assert_eq!(table.to_string(), "A      LONG\nwide   é\nx\n");
    }

    #[test]
    fn control_characters_are_escaped() {
        let mut table = Table::new(&["A"]);
        table.row(["\x1b[31mred\r\n\u{9b}".into()]);
        assert_eq!(table.to_string(), "A\n\\u{1b}[31mred\\r\\n\\u{9b}\n");
    }

    #[test]
    fn times_and_sizes_are_short() {
        let times = [0, 59, 60, 3599, 3600, 86399, 86400, 90000].map(duration);
        assert_eq!(times, ["0s", "59s", "1m0s", "59m59s", "1h0m", "23h59m", "1d0h", "1d1h"]);
        let sizes = [0, 1023, 1024, 1536, 5 << 30, u64::MAX].map(bytes);
        assert_eq!(sizes, ["0B", "1023B", "1.0KiB", "1.5KiB", "5.0GiB", "16777215.9TiB"]);
    }
}
