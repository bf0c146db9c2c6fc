//! `--format` and `--filter`: Go templates and filters, as docker's commands take them.
//!
//! Templates are those of Go's text/template, with docker's functions, applied to JSON values. Documents of Go programs
//! have types and these have not, which shows in two ways: an object is written as `map[Key:value …]`, whatever it is
//! in docker, and a missing key of an object of texts (as labels are) is an empty text.

mod filter;
mod functions;
mod scan;
mod template;
#[cfg(test)]
mod tests;

use std::str::FromStr;

use serde_json::Value;
use thiserror::Error;

pub use filter::{Filter, FilterError, Filters, invalid, matches_name};

use self::template::Template;
use crate::table::{Cut, DOCKERS_LEAST, Table};

/// Why a template can't be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FormatError {
    /// Not a template.
    #[error("invalid template: line {line}, column {column}: {reason}")]
    Syntax {
        /// Counted from 1.
        line: usize,
        /// Bytes of the line, counted from 1.
        column: usize,
        /// What is wrong there.
        reason: String,
    },
    /// A block that does not end, or ends twice.
    #[error("invalid template: each {{{{if}}}}, {{{{range}}}} and {{{{with}}}} needs one {{{{end}}}}")]
    Unbalanced,
    /// Too long.
    #[error("invalid template: it has more than 16 KiB")]
    TooLong,
    /// A field that the value does not have.
    #[error("cannot apply the template: there is no field {0:?}")]
    NoField(String),
    /// A field that the rows of a list do not have.
    #[error("cannot apply the template: there is no field {field:?}: use {fields}")]
    NoColumn {
        /// The field.
        field: String,
        /// Those that there are.
        fields: String,
    },
    /// A function was given what it can't take, or the like.
    #[error("cannot apply the template: {0}")]
    Apply(String),
}

/// What `--format` asks for.
#[derive(Clone)]
pub enum Format {
    /// `json`: an object on a line.
    Json,
    /// `table`: the command's own table, or one with these columns.
    Table(Option<Box<TableTemplate>>),
    /// Anything else: a template for each row or value.
    Template(Box<Template>, Box<Template>),
}

/// The template of a table's rows, and of its heading.
#[derive(Clone)]
pub struct TableTemplate {
    row: Template,
    heading: Template,
}

impl FromStr for Format {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        if text == "json" {
            return Ok(Self::Json);
        }
        let table =
            text.strip_prefix("table").filter(|rest| rest.is_empty() || rest.starts_with([' ', '\\', '\t']));
        let Some(columns) = table else {
            return Ok(Self::Template(
                Box::new(Template::of_row(text)?),
                Box::new(Template::of_value(text)?),
            ));
        };
        let columns = columns.trim_matches(' ');
        if columns.is_empty() {
            return Ok(Self::Table(None));
        }
        let (row, heading) = (Template::of_row(columns)?, Template::of_heading(columns)?);
        Ok(Self::Table(Some(Box::new(TableTemplate { row, heading }))))
    }
}

/// A field of a list's rows, and the heading of its column.
pub type Column = (&'static str, &'static str);

impl Format {
    /// Whether the command's own table is asked for.
    pub fn is_default(&self) -> bool {
        matches!(self, Self::Table(None))
    }

    /// The rows of a list, each an object, as the format asks. `columns` are all fields that a template may name;
    /// those of the command's own table are `shown`, which `table` alone writes.
    ///
    /// # Errors
    ///
    /// [`FormatError`], where a template does not fit the rows.
    pub fn list(&self, columns: &[Column], shown: &[&str], rows: &[Value]) -> Result<String, FormatError> {
        let hint = |error| match error {
            FormatError::NoField(field) => {
                let fields: Vec<&str> = columns.iter().map(|(field, _)| *field).collect();
                FormatError::NoColumn { field, fields: fields.join(", ") }
            }
            error => error,
        };
        match self {
            Self::Json => {
                Ok(crate::escaped(&rows.iter().map(|row| format!("{row}\n")).collect::<String>())
                    .into_owned())
            }
            Self::Table(None) => Ok(own_table(columns, shown, rows)),
            Self::Table(Some(table)) => {
                let headings =
                    columns.iter().map(|(field, heading)| ((*field).to_owned(), Value::from(*heading)));
                let heading = table.heading.apply(&Value::Object(headings.collect())).map_err(hint)?;
                let heading: Vec<&str> = heading.split('\t').collect();
                let mut laid_out = Table::with_least(DOCKERS_LEAST, &heading);
                for row in rows {
                    for line in table.row.apply(row).map_err(hint)?.split('\n') {
                        laid_out.row(line.split('\t').map(str::to_owned));
                    }
                }
                Ok(laid_out.to_string())
            }
            Self::Template(row, _) => {
                let lines = rows.iter().map(|value| Ok(row.apply(value)? + "\n"));
                lines.collect::<Result<String, _>>().map_err(hint)
            }
        }
    }

    /// What a command that inspects writes: without a format an array for people, with `json` an array on one line,
    /// with a template a line for each value.
    ///
    /// # Errors
    ///
    /// [`FormatError`], where a template does not fit the values.
    pub fn inspect(format: Option<&Self>, values: &[Value]) -> Result<String, FormatError> {
        match format {
            None | Some(Self::Table(None)) => Ok(crate::json(&values)),
            Some(Self::Json) => Ok(crate::escaped(&format!("{}\n", Value::from(values))).into_owned()),
            Some(Self::Table(Some(table))) => {
                values.iter().map(|value| Ok(table.row.apply(value)? + "\n")).collect()
            }
            Some(Self::Template(_, template)) => {
                values.iter().map(|value| Ok(template.apply(value)? + "\n")).collect()
            }
        }
    }
}

/// `value` as the template `text` writes it, whatever the words of `--format` mean.
///
/// # Errors
///
/// [`FormatError`]: not a template, or one that does not fit the value.
pub fn apply(text: &str, value: &Value) -> Result<String, FormatError> {
    Template::of_value(text)?.apply(value)
}

/// The table of a command without `--format`: the fields that are `shown` of each row, and which part of their cells
/// may be cut, if any. Where a line would have more than `width` characters, the columns of `spare` are left out first.
pub fn fitted_table(
    columns: &[Column],
    shown: &[(&str, Option<Cut>)],
    rows: &[Value],
    width: Option<usize>,
    spare: &[&str],
) -> String {
    let heading =
        |field: &str| columns.iter().find(|(name, _)| *name == field).map_or("", |(_, heading)| *heading);
    let headings: Vec<_> = shown.iter().map(|(field, cut)| (heading(field), *cut)).collect();
    let cell = |row: &Value, field: &str| match row.get(field) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    };
    let cells = |row: &Value| shown.iter().map(|(field, _)| cell(row, field)).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(cells).collect();
    let place = |field: &&str| shown.iter().position(|(known, _)| known == field);
    Table::fitted(&headings, &rows, width, &spare.iter().filter_map(place).collect::<Vec<_>>()).to_string()
}

/// The same, complete.
fn own_table(columns: &[Column], shown: &[&str], rows: &[Value]) -> String {
    let shown: Vec<_> = shown.iter().map(|field| (*field, None)).collect();
    fitted_table(columns, &shown, rows, None, &[])
}
