//! Tables: columns as wide as their widest cell, or as a terminal has room for.

use std::io::{self, IsTerminal};
use std::{fmt, iter};

/// Between two columns.
const GAP: &str = "   ";
/// A cell is not cut to fewer characters.
const SHORTEST: usize = 12;

/// How wide docker makes the columns of a template, in characters, without the space between them.
pub const DOCKERS_LEAST: usize = 7;

/// A table with a heading.
pub struct Table {
    rows: Vec<Vec<String>>,
    /// No column is narrower.
    least: usize,
}

/// Which part of a cell is left out if the terminal has no room for it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The end, as of a name.
    End,
    /// The start, as of a path.
    Start,
}

/// The width of the terminal on standard output, in characters; `None` if it is none or does not say.
pub fn terminal_width() -> Option<usize> {
    let out = io::stdout();
    let size = out.is_terminal().then(|| rustix::termios::tcgetwinsize(&out).ok()).flatten()?;
    (size.ws_col > 0).then(|| usize::from(size.ws_col))
}

impl Table {
    /// A table with these columns and no row.
    pub fn new(heading: &[&str]) -> Self {
        Self::with_least(0, heading)
    }

    /// The same with columns of at least `least` characters.
    pub fn with_least(least: usize, heading: &[&str]) -> Self {
        Self { rows: vec![heading.iter().map(ToString::to_string).collect()], least }
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
        self.rows.push(cells.into_iter().map(without_controls).collect());
    }

    /// Cuts the cells of `columns`, the widest first and none to fewer than 12 characters, until a line has at most
    /// `width` characters. The last columns are left out while that is not enough, if they are among `columns`.
    pub fn fit(&mut self, width: usize, columns: &[(usize, Cut)]) {
        let mut widths = self.widths();
        let mut columns = columns.to_vec();
        let total =
            |widths: &[usize]| widths.iter().sum::<usize>() + GAP.len() * widths.len().saturating_sub(1);
        let narrowest = |widths: &[usize], columns: &[(usize, Cut)]| {
            let can_shrink = |column: usize| columns.iter().any(|(cut, _)| *cut == column);
            let least = widths.iter().enumerate();
            let least =
                least.map(|(column, width)| if can_shrink(column) { SHORTEST.min(*width) } else { *width });
            total(&least.collect::<Vec<_>>())
        };
        while narrowest(&widths, &columns) > width
            && let Some(last) = columns.iter().position(|(column, _)| column + 1 == widths.len())
            && widths.len() > 1
        {
            columns.remove(last);
            widths.pop();
        }
        for row in &mut self.rows {
            row.truncate(widths.len());
        }
        for _ in width..total(&widths) {
            let shrinkable = columns.iter().map(|(column, _)| *column);
            let widest = shrinkable.max_by_key(|column| widths.get(*column).copied());
            if let Some(widest) = widest.and_then(|column| widths.get_mut(column))
                && *widest > SHORTEST
            {
                *widest -= 1;
            }
        }
        for row in &mut self.rows {
            for (column, cut) in &columns {
                if let (Some(cell), Some(width)) = (row.get_mut(*column), widths.get(*column)) {
                    *cell = shortened(cell, *width, *cut);
                }
            }
        }
    }

    /// A table of `rows` with these columns: the heading of each, and which part of its cells may be cut, if any. Where
    /// a line would have more than `width` characters, columns are left out in the order of `spare` until it fits, and
    /// then cut.
    pub fn fitted(
        columns: &[(&str, Option<Cut>)],
        rows: &[Vec<String>],
        width: Option<usize>,
        spare: &[usize],
    ) -> Self {
        let least = |column: usize| {
            let (heading, cut) = columns.get(column).copied().unwrap_or_default();
            let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            let widest = cells.chain([heading.chars().count()]).max().unwrap_or(0);
            if cut.is_some() { widest.min(SHORTEST) } else { widest }
        };
        let mut kept: Vec<usize> = (0..columns.len()).collect();
        let mut spare = spare.iter();
        while let Some(width) = width
            && kept.iter().map(|column| least(*column) + GAP.len()).sum::<usize>() > width + GAP.len()
            && let Some(left_out) = spare.next()
        {
            kept.retain(|column| column != left_out);
        }
        let of = |column: &usize| columns.get(*column).copied().unwrap_or_default();
        let mut table = Self::new(&kept.iter().map(|column| of(column).0).collect::<Vec<_>>());
        for row in rows {
            table.row(kept.iter().map(|column| row.get(*column).cloned().unwrap_or_default()));
        }
        if let Some(width) = width {
            let cuts = kept.iter().enumerate();
            let cuts: Vec<_> = cuts.filter_map(|(place, column)| Some((place, of(column).1?))).collect();
            table.fit(width, &cuts);
        }
        table
    }

    /// Breaks the cells of the last column between words, until a line has at most `width` characters. The column has
    /// at least 20.
    pub fn wrap(&mut self, width: usize) {
        let mut widths = self.widths();
        let Some(_) = widths.pop() else { return };
        let before = widths.iter().map(|width| width + GAP.len()).sum::<usize>();
        let room = width.saturating_sub(before).max(20);
        for row in std::mem::take(&mut self.rows) {
            let Some((last, first)) = row.split_last() else { continue };
            let mut lines = wrapped(last, room).into_iter();
            let mut cells = first.to_vec();
            cells.push(lines.next().unwrap_or_default());
            self.rows.push(cells);
            for line in lines {
                let mut cells = vec![String::new(); widths.len()];
                cells.push(line);
                self.rows.push(cells);
            }
        }
    }

    fn widths(&self) -> Vec<usize> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let cells = |column| self.rows.iter().filter_map(move |row| row.get(column));
        (0..columns)
            .map(|column| {
                cells(column).map(|cell: &String| cell.chars().count()).max().unwrap_or(0).max(self.least)
            })
            .collect()
    }
}

/// `text` in lines of at most `width` characters, broken between words. A longer word has a line of its own.
pub fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut length = 0;
    for word in text.split(' ') {
        let added = word.chars().count();
        match lines.last_mut() {
            Some(line) if length > 0 && length + 1 + added <= width => {
                *line += " ";
                *line += word;
                length += 1 + added;
            }
            Some(line) if length == 0 => {
                *line += word;
                length = added;
            }
            _ => {
                lines.push(word.to_owned());
                length = added;
            }
        }
    }
    lines
}

/// `cell` with at most `width` characters, an ellipsis among them where some are left out.
pub fn shortened(cell: &str, width: usize, cut: Cut) -> String {
    let length = cell.chars().count();
    let kept = width.saturating_sub(1);
    match cut {
        _ if length <= width => cell.to_owned(),
        Cut::End => cell.chars().take(kept).chain(iter::once('…')).collect(),
        Cut::Start => iter::once('…').chain(cell.chars().skip(length - kept)).collect(),
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line += &format!("{cell:<width$}{GAP}");
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
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
        let mut table = Table::with_least(DOCKERS_LEAST, &["A", "B"]);
        table.row(["12345678".into(), "x".into()]);
        table.row(["1".into()]);
        assert_eq!(table.to_string(), "A          B\n12345678   x\n1\n");
        assert_eq!(Table::with_least(DOCKERS_LEAST, &["A", "B", "C"]).to_string(), "A         B         C\n");
    }

    #[test]
    fn a_narrow_terminal_gets_shorter_cells_and_then_fewer_columns() {
        let fitted = |width| {
            let mut table = Table::new(&["NAME", "PID", "PATH"]);
            table.row(["a-name-of-24-characters-".into(), "1234".into(), "/a/path/of/24/characters".into()]);
            table.fit(width, &[(0, Cut::End), (2, Cut::Start)]);
            table.to_string()
        };
        let row = |width| fitted(width).lines().nth(1).unwrap().to_owned();
        assert_eq!(row(58), "a-name-of-24-characters-   1234   /a/path/of/24/characters");
        assert_eq!(row(56), "a-name-of-24-character…   1234   …/path/of/24/characters");
        assert_eq!(row(34), "a-name-of-2…   1234   …/characters");
        assert_eq!(fitted(33), "NAME                       PID\na-name-of-24-characters-   1234\n");
        assert_eq!(fitted(1), "NAME           PID\na-name-of-2…   1234\n");
        for width in 19..80 {
            assert!(fitted(width).lines().all(|line| line.chars().count() <= width), "{width}");
        }
    }

    #[test]
    fn spare_columns_are_left_out_before_what_was_asked_for() {
        let columns = [("ID", None), ("NAME", Some(Cut::End)), ("AGE", None), ("PODNAME", Some(Cut::End))];
        let row = ["0123456789ab".into(), "n".repeat(30), "2 hours".into(), "p".repeat(63)];
        let fitted = |width| Table::fitted(&columns, &[row.to_vec()], Some(width), &[2, 1]).to_string();
        let heading =
            |width| fitted(width).lines().next().unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(heading(52), "ID NAME AGE PODNAME");
        assert_eq!(heading(51), "ID NAME PODNAME");
        assert_eq!(heading(41), "ID PODNAME");
        assert_eq!(heading(27), "ID PODNAME");
        for width in 27..150 {
            assert!(fitted(width).lines().all(|line| line.chars().count() <= width), "{width}");
        }
        assert!(
            Table::fitted(&columns, &[row.to_vec()], None, &[2, 1]).to_string().contains(&"p".repeat(63))
        );
    }

    #[test]
    fn the_last_column_is_wrapped_between_words() {
        assert_eq!(wrapped("", 5), [""]);
        assert_eq!(wrapped("a bc def", 4), ["a bc", "def"]);
        assert_eq!(wrapped("longer-than that", 4), ["longer-than", "that"]);
        let mut table = Table::new(&["A", "TEXT"]);
        table.row(["x".into(), "words that need more than one line of it".into()]);
        table.wrap(30);
        assert_eq!(table.to_string(), "A   TEXT\nx   words that need more than\n    one line of it\n");
    }

    #[test]
    fn control_characters_are_escaped() {
        let mut table = Table::new(&["A"]);
        table.row(["\x1b[31mred\r\n\u{9b}".into()]);
        assert_eq!(table.to_string(), "A\n\\u{1b}[31mred\\r\\n\\u{9b}\n");
    }

    #[test]
    fn sizes_are_short() {
        let sizes = [0, 1023, 1024, 1536, 5 << 30, u64::MAX].map(bytes);
        assert_eq!(sizes, ["0B", "1023B", "1.0KiB", "1.5KiB", "5.0GiB", "16777215.9TiB"]);
    }
}
