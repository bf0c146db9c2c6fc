//! Templates with bounds: their length and depth, the steps that they take, and what they write.

use std::fmt::{self, Write};
use std::io::{self, IsTerminal};

use gotmpl::parse::{BranchNode, Expr, ListNode, Node, PipeNode, Pos};
use gotmpl::{MissingKey, TemplateError};
use serde_json::Value;

use super::{FormatError, functions, scan};

/// The most bytes of a template.
const MAX_LENGTH: usize = 16 << 10;
/// The most bytes that a template writes for one value.
const MAX_OUTPUT: usize = 64 << 20;
/// The most turns of all `range` together.
const MAX_TURNS: u64 = 1 << 20;
/// A character that no template needs, behind a text that must be parsed to its end.
const END: char = '\u{1}';
const NAME: &str = "format";

/// A template that has been parsed.
#[derive(Clone)]
pub struct Template(gotmpl::Template);

impl Template {
    /// For a value that is inspected.
    pub fn of_value(text: &str) -> Result<Self, FormatError> {
        Self::parse(text.to_owned(), functions::all())
    }

    /// For the rows of a list.
    pub fn of_row(text: &str) -> Result<Self, FormatError> {
        Self::parse(scan::with_label(&scan::with_escapes(text.trim_matches(' '))), functions::all())
    }

    /// For the headings of a table, which functions leave as they are.
    pub fn of_heading(text: &str) -> Result<Self, FormatError> {
        Self::parse(scan::with_label(&scan::with_escapes(text)), functions::of_headings())
    }

    fn parse(text: String, functions: gotmpl::FuncMap) -> Result<Self, FormatError> {
        // The parser has a bound for what is nested, 100.
        if text.len() > MAX_LENGTH {
            return Err(FormatError::TooLong);
        }
        let empty = || {
            let template = gotmpl::Template::new(NAME).funcs(functions.clone());
            template.missing_key(MissingKey::Error).max_range_iters(MAX_TURNS)
        };
        let parse = |text: &str| empty().parse(text).map_err(|error| syntax(&error));
        let template = parse(&text)?;
        // The parser takes an `end` or `else` too many for the end of the template, and takes one that is missing as
        // given.
        let marked = parse(&format!("{text}{END}"))?;
        let is_whole = marked
            .lookup(NAME)
            .and_then(|body| body.nodes.last())
            .is_some_and(|node| matches!(node, Node::Text(text) if text.text.ends_with(END)));
        if !is_whole {
            return Err(FormatError::Unbalanced);
        }
        for name in marked.templates() {
            let calls = marked.lookup(name).map(|body| calls(body, &functions));
            if let Some(Err((function, position))) = calls {
                let before = text.get(..position.offset).unwrap_or_default();
                let column = position.offset - before.rfind('\n').map_or(0, |at| at + 1) + 1;
                let reason = format!("there is no function {function:?}");
                return Err(FormatError::Syntax { line: position.line, column, reason });
            }
        }
        Ok(Self(template))
    }

    /// What the template writes for `value`.
    ///
    /// # Errors
    ///
    /// [`FormatError::NoField`], [`FormatError::Apply`].
    pub fn apply(&self, value: &Value) -> Result<String, FormatError> {
        let mut output = Output(String::new());
        let value = functions::to_template(value, io::stdout().is_terminal());
        match self.0.execute_fmt(&mut output, &value) {
            Ok(()) => Ok(output.0),
            Err(TemplateError::MissingKey { key }) => Err(FormatError::NoField(key)),
            Err(TemplateError::Write) => Err(FormatError::Apply("it writes more than 64 MiB".to_owned())),
            Err(TemplateError::Exec(reason)) => Err(FormatError::Apply(reason)),
            Err(error) => Err(FormatError::Apply(error.to_string())),
        }
    }
}

/// A text of up to [`MAX_OUTPUT`] bytes.
struct Output(String);

impl Write for Output {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len().saturating_add(text.len()) > MAX_OUTPUT {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

fn syntax(error: &TemplateError) -> FormatError {
    match error {
        TemplateError::Parse { line, col, message, .. } | TemplateError::Lex { line, col, message, .. } => {
            let reason = message.clone();
            // What concerns the whole has no place.
            FormatError::Syntax { line: (*line).max(1), column: (*col).max(1), reason }
        }
        error => FormatError::Apply(error.to_string()),
    }
}

type Unknown = (String, Pos);

/// Whether all functions that are called exist. Go says so before the template is applied.
fn calls(body: &ListNode, functions: &gotmpl::FuncMap) -> Result<(), Unknown> {
    let branch = |branch: &BranchNode| {
        in_pipe(&branch.pipe, functions)?;
        calls(&branch.body, functions)?;
        branch.else_body.as_ref().map_or(Ok(()), |body| calls(body, functions))
    };
    for node in &body.nodes {
        match node {
            Node::List(list) => calls(list, functions)?,
            Node::Action(action) => in_pipe(&action.pipe, functions)?,
            Node::If(node) | Node::Range(node) | Node::With(node) => branch(node)?,
            Node::Template(node) => node.pipe.as_ref().map_or(Ok(()), |pipe| in_pipe(pipe, functions))?,
            Node::Define(node) => calls(&node.body, functions)?,
            Node::Text(_) | Node::Break(_) | Node::Continue(_) => {}
        }
    }
    Ok(())
}

fn in_pipe(pipe: &PipeNode, functions: &gotmpl::FuncMap) -> Result<(), Unknown> {
    let mut words = pipe.commands.iter().flat_map(|command| &command.args);
    words.try_for_each(|word| in_expression(word, functions))
}

fn in_expression(expression: &Expr, functions: &gotmpl::FuncMap) -> Result<(), Unknown> {
    match expression {
        Expr::Identifier(position, name) => {
            let is_known =
                functions.contains_key(name.as_str()) || functions::BUILT_IN.contains(&name.as_str());
            if is_known { Ok(()) } else { Err((name.to_string(), *position)) }
        }
        Expr::Pipe(_, pipe) => in_pipe(pipe, functions),
        Expr::Chain(_, inner, _) => in_expression(inner, functions),
        _ => Ok(()),
    }
}
