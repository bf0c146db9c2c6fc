//! `mvm history`.

use clap::{ArgAction, Args};
use serde_json::{Value, json};

use super::find;
use super::human::{age, date_of, size};
use super::list::short;
use crate::complaint::{Complaint, complete};
use crate::format::{Column, Format};
use crate::process::ExitCode;
use crate::{exit_code, print};

const EXAMPLES: &str = "\
Examples:
  mvm history --no-trunc alpine
  mvm history --format '{{.Size}} {{.CreatedBy}}' --human=false alpine

Fields of templates: ID, CreatedSince, CreatedAt, CreatedBy, Size, Comment.";

const COLUMNS: &[Column] = &[
    ("ID", "IMAGE"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("CreatedBy", "CREATED BY"),
    ("Size", "SIZE"),
    ("Comment", "COMMENT"),
];

/// A command is shown with this many characters.
const SHOWN: usize = 45;

/// Arguments of `mvm history`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct HistoryCommand {
    /// Print json, "table TEMPLATE" or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,

    /// Print sizes and times for people; with false, bytes and dates
    #[arg(
        long, short = 'H', value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "true",
        default_missing_value = "true", action = ArgAction::Set, hide_possible_values = true
    )]
    human: bool,

    /// Print only IDs
    #[arg(long, short)]
    quiet: bool,

    /// Print whole commands
    #[arg(long)]
    no_trunc: bool,

    /// The image
    image: String,
}

impl HistoryCommand {
    /// Shows how an image was made, the last step first.
    pub fn run(self) -> ExitCode {
        complete(self.show())
    }

    fn show(self) -> Result<ExitCode, Complaint> {
        let image = find(&self.image)?;
        let whole = if self.no_trunc { image.id.to_string() } else { short(&image) };
        let row = |(index, step): (usize, image::HistoryEntry)| -> Value {
            let id = if index == 0 { whole.clone() } else { "<missing>".into() };
            let by = step.created_by.unwrap_or_default().replace('\t', " ");
            let by = match self.no_trunc || by.chars().count() <= SHOWN {
                true => by,
                false => by.chars().take(SHOWN - 1).chain(['…']).collect(),
            };
            let at = date_of(step.created.as_deref());
            json!({
                "ID": id, "CreatedBy": by, "Comment": step.comment.unwrap_or_default(), "CreatedAt": at,
                "CreatedSince": if self.human { age(step.created.as_deref()) } else { at.clone() },
                "Size": if self.human { size(step.size) } else { step.size.to_string() },
            })
        };
        let rows: Vec<Value> = image.history().into_iter().rev().enumerate().map(row).collect();
        let format = self.format.unwrap_or(Format::Table(None));
        if self.quiet && format.is_default() {
            let ids = rows.iter().filter_map(|row| row.get("ID")?.as_str());
            let ids: String = ids.map(|id| format!("{id}\n")).collect();
            return Ok(print(ids.as_bytes(), exit_code::SUCCESS));
        }
        let shown = ["ID", "CreatedSince", "CreatedBy", "Size", "Comment"];
        let text = format.list(COLUMNS, &shown, &rows)?;
        Ok(print(text.as_bytes(), exit_code::SUCCESS))
    }
}
