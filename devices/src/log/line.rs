//! The text of a line.

use std::fmt::{self, Write};
use std::hash::{DefaultHasher, Hasher};

use tracing::Level;
use tracing::field::{Field, Visit};

use super::limit::{Rate, Verdict};

/// The most bytes of a line before its end is cut off.
const MOST: usize = 2048;

/// Shows `T` with everything escaped that a terminal would act on: control characters, and the marks that change the
/// direction of text. A backslash stays as it is.
pub struct Escaped<T>(pub T);

impl<T: fmt::Display> fmt::Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaper(f), "{}", self.0)
    }
}

struct Escaper<'a, W: ?Sized>(&'a mut W);

impl<W: Write + ?Sized> Write for Escaper<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut plain = 0;
        for (at, found) in text.char_indices().filter(|(_, character)| acts_on_a_terminal(*character)) {
            self.0.write_str(text.get(plain..at).unwrap_or_default())?;
            write!(self.0, "{}", found.escape_default())?;
            plain = at + found.len_utf8();
        }
        self.0.write_str(text.get(plain..).unwrap_or_default())
    }
}

fn acts_on_a_terminal(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Text of bounded length: what is written behind [`MOST`] bytes is cut off.
#[derive(Default)]
struct Bounded {
    text: String,
    full: bool,
}

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = MOST.saturating_sub(self.text.len());
        if self.full || text.len() <= room {
            self.text.push_str(if self.full { "" } else { text });
            return Ok(());
        }
        let end = (0..=room).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        self.text.push_str(text.get(..end).unwrap_or_default());
        self.text.push('…');
        self.full = true;
        Ok(())
    }
}

impl Bounded {
    fn starting_with(prefix: &str) -> Self {
        Self { text: prefix.to_owned(), full: false }
    }

    fn into_line(mut self) -> String {
        self.text.push('\n');
        self.text
    }
}

/// The line of a message that has no level.
pub(super) fn plain(message: &dyn fmt::Display) -> String {
    let mut line = Bounded::starting_with("mvm: ");
    // A line takes everything, and what it shows does not fail either.
    let _ = write!(line, "{}", Escaped(message));
    line.into_line()
}

fn prefix(level: Level) -> &'static str {
    match level {
        Level::ERROR => "mvm: ",
        Level::WARN => "mvm: warning: ",
        Level::INFO => "mvm: info: ",
        Level::DEBUG => "mvm: debug: ",
        Level::TRACE => "mvm: trace: ",
    }
}

/// The line of an event: its message, then `: ` and its `error`, then its other fields in brackets.
pub(super) fn of_event(event: &tracing::Event<'_>, verdict: Verdict) -> String {
    let mut fields = Fields::default();
    event.record(&mut fields);
    let level = *event.metadata().level();
    let mut line = Bounded::starting_with(prefix(level));
    let _ = line.write_str(&fields.message.text);
    if !fields.error.text.is_empty() {
        let _ = write!(line, ": {}", fields.error.text);
    }
    if !fields.others.text.is_empty() {
        let _ = write!(line, " ({})", fields.others.text);
    }
    if let Verdict::Written { left_out, last } = verdict {
        if left_out > 0 {
            let _ = write!(line, " [{left_out} more like this were left out]");
        }
        if last {
            let seconds = Rate::of(level).interval.as_secs_f32();
            let _ = write!(line, " [from now on, one like this every {seconds} s at the most]");
        }
    }
    line.into_line()
}

#[derive(Default)]
struct Fields {
    message: Bounded,
    error: Bounded,
    others: Bounded,
}

impl Fields {
    fn put(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        let into = match field.name() {
            "message" => &mut self.message,
            "error" => &mut self.error,
            name => {
                let separator = if self.others.text.is_empty() { "" } else { ", " };
                let _ = write!(self.others, "{separator}{name} ");
                &mut self.others
            }
        };
        let _ = write!(Escaper(into), "{value}");
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, format_args!("{value}"));
    }

    /// With its causes, on one line.
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, format_args!("{value}"));
        let mut cause = value.source();
        while let Some(error) = cause {
            let _ = write!(Escaper(&mut self.error), ": {error}");
            cause = error.source();
        }
    }
}

/// A number for the field `device` of `event`; 0, where it has none.
pub(super) fn device_of(event: &tracing::Event<'_>) -> u64 {
    struct Find(Option<DefaultHasher>);
    impl Write for Find {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0.get_or_insert_default().write(text.as_bytes());
            Ok(())
        }
    }
    impl Visit for Find {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            if field.name() == "device" {
                let _ = write!(self, "{value:?}");
            }
        }
    }
    let mut find = Find(None);
    event.record(&mut find);
    find.0.map_or(0, |hasher| hasher.finish())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_terminal_sees_text_alone() {
        let text = "a\x1b[2J\r\nb\u{9b}\u{202e}c \\ é …";
        assert_eq!(Escaped(text).to_string(), "a\\u{1b}[2J\\r\\nb\\u{9b}\\u{202e}c \\ é …");
    }

    proptest! {
        #[test]
        fn whatever_is_said_is_one_line_of_bounded_length(message in "(?s).{0,3000}") {
            let line = plain(&message);
            prop_assert!(line.len() <= MOST + "…\n".len(), "{}", line.len());
            prop_assert!(line.starts_with("mvm: ") && line.ends_with('\n'));
            prop_assert_eq!(line.matches(acts_on_a_terminal).count(), 1, "its end");
        }
    }
}
