//! The functions of templates: docker's, and those of Go that need a bound.

use std::sync::Arc;

use gotmpl::{FuncMap, Result, Template, TemplateError, Value};

/// The most bytes of the texts that a function is given, and of the one that it makes.
const MAX_TEXT: usize = 4 << 20;
/// The most bytes of the first argument of `printf`: each of its verbs can write 64 KiB.
const MAX_PRINTF: usize = 4 << 10;

/// The most bytes that `printf` may make of texts.
const MAX_PRINTED: usize = 64 << 20;

/// Go's own functions that need no bound.
pub const BUILT_IN: &[&str] = &["and", "call", "eq", "ge", "gt", "le", "lt", "ne", "not", "or", "slice"];
/// Go's own functions that make texts of texts.
const GROWING: [&str; 6] = ["html", "js", "print", "printf", "println", "urlquery"];

/// The functions for values and rows.
pub fn all() -> FuncMap {
    let mut all = FuncMap::new();
    let mut add = |name: &'static str, function: fn(&[Value]) -> Result<Value>| {
        let function = move |arguments: &[Value]| bounded(name, arguments, function);
        all.insert(name.to_owned(), Arc::new(function));
    };
    add("json", |arguments| Ok(text(to_json(one("json", arguments)?).to_string())));
    add("lower", |arguments| Ok(text(string("lower", arguments, 0)?.to_lowercase())));
    add("upper", |arguments| Ok(text(string("upper", arguments, 0)?.to_uppercase())));
    add("title", |arguments| Ok(text(title(string("title", arguments, 0)?))));
    add("join", join);
    add("split", |arguments| {
        let separator = string("split", arguments, 1)?;
        let parts: Vec<Value> = match string("split", arguments, 0)? {
            whole if separator.is_empty() => {
                whole.chars().map(|character| text(character.to_string())).collect()
            }
            whole => whole.split(separator).map(|part| text(part.to_owned())).collect(),
        };
        Ok(Value::List(parts.into()))
    });
    add("truncate", |arguments| {
        let whole = string("truncate", arguments, 0)?;
        let length = whole.floor_char_boundary(count("truncate", arguments, 1)?);
        Ok(text(whole.get(..length).unwrap_or(whole).to_owned()))
    });
    add("pad", |arguments| {
        let whole = string("pad", arguments, 0)?;
        let (before, after) = (count("pad", arguments, 1)?, count("pad", arguments, 2)?);
        let spaces = |count: usize| " ".repeat(if whole.is_empty() { 0 } else { count.min(1 << 16) });
        Ok(text(format!("{}{whole}{}", spaces(before), spaces(after))))
    });
    add("index", index);
    add("len", |arguments| match one("len", arguments)? {
        Value::Nil => Ok(Value::Int(0)),
        Value::String(text) => Ok(number(text.len())),
        Value::List(list) => Ok(number(list.len())),
        Value::Map(map) => Ok(number(map.len())),
        other => Err(wrong("len", other)),
    });
    add("label", label);
    for name in GROWING {
        let function =
            move |arguments: &[Value]| bounded(name, arguments, |arguments| built_in(name, arguments));
        all.insert(name.to_owned(), Arc::new(function));
    }
    all
}

/// The functions for headings: docker's leave them as they are.
pub fn of_headings() -> FuncMap {
    let mut all = all();
    for name in ["join", "json", "lower", "pad", "split", "title", "truncate", "upper"] {
        let first = |arguments: &[Value]| Ok(arguments.first().cloned().unwrap_or(Value::Nil));
        all.insert(name.to_owned(), Arc::new(first));
    }
    // The last part of the label's key.
    all.insert(
        "label".to_owned(),
        Arc::new(|arguments: &[Value]| {
            let key = string("label", arguments, 1)?;
            Ok(text(key.rsplit('.').next().unwrap_or(key).replace(['-', '_'], " ")))
        }),
    );
    all
}

/// Calls a function, within the bounds of what it may read and write.
fn bounded(name: &str, arguments: &[Value], function: impl Fn(&[Value]) -> Result<Value>) -> Result<Value> {
    let length = |value: &Value| if let Value::String(text) = value { text.len() } else { 0 };
    let too_long = || TemplateError::Exec(format!("{name}: the text has more than 4 MiB"));
    let given: usize = arguments.iter().map(length).sum();
    if name == "printf" {
        let format = arguments.first().map_or(0, length);
        if format > MAX_PRINTF {
            return Err(TemplateError::Exec("printf: the format has more than 4 KiB".to_owned()));
        }
        // A verb has two bytes at least, and writes its argument once.
        if given.saturating_mul(format / 2) > MAX_PRINTED {
            return Err(too_long());
        }
    }
    if given > MAX_TEXT {
        return Err(too_long());
    }
    let made = function(arguments)?;
    if length(&made) > MAX_TEXT { Err(too_long()) } else { Ok(made) }
}

/// Calls one of Go's own functions. Only templates can.
fn built_in(name: &str, arguments: &[Value]) -> Result<Value> {
    let words: String = (0..arguments.len()).map(|number| format!(" (index . {number})")).collect();
    let call = Template::new(name).parse(&format!("{{{{{name}{words}}}}}"))?;
    Ok(text(call.execute_to_string(&Value::List(arguments.into()))?))
}

fn join(arguments: &[Value]) -> Result<Value> {
    let separator = string("join", arguments, 1)?;
    let parts: Vec<String> = match arguments.first() {
        Some(Value::List(list)) => list.iter().map(ToString::to_string).collect(),
        Some(Value::Nil) => Vec::new(),
        other => return Err(wrong("join", other.unwrap_or(&Value::Nil))),
    };
    let length: usize = parts.iter().map(|part| part.len().saturating_add(separator.len())).sum();
    if length > MAX_TEXT {
        return Err(TemplateError::Exec("join: the text has more than 4 MiB".to_owned()));
    }
    Ok(text(parts.join(separator)))
}

/// Go's `index`. A key that an object of texts does not have is an empty text, as it is of Go's maps of texts.
fn index(arguments: &[Value]) -> Result<Value> {
    let (value, keys) = arguments.split_first().ok_or_else(|| missing("index", 1, 0))?;
    let mut value = value.clone();
    for key in keys {
        value = match (&value, key) {
            (Value::Map(map), Value::String(key)) => {
                let is_text = || map.values().all(|value| matches!(value, Value::String(_)));
                let absent = || if is_text() { text(String::new()) } else { Value::Nil };
                map.get(key).cloned().unwrap_or_else(absent)
            }
            (Value::Nil, _) => text(String::new()),
            (Value::List(list), Value::Int(at)) => {
                let found = usize::try_from(*at).ok().and_then(|at| list.get(at));
                found.cloned().ok_or(TemplateError::IndexOutOfRange { index: *at })?
            }
            (Value::String(whole), Value::Int(at)) => {
                let found = usize::try_from(*at).ok().and_then(|at| whole.as_bytes().get(at));
                found
                    .map(|byte| Value::Int((*byte).into()))
                    .ok_or(TemplateError::IndexOutOfRange { index: *at })?
            }
            (other, key) => {
                let (other, key) = (other.type_name(), key.type_name());
                return Err(TemplateError::Exec(format!("index: a {other} cannot be indexed with a {key}")));
            }
        };
    }
    Ok(value)
}

/// The value of a label in a row's `Labels`, which is a list with commas.
fn label(arguments: &[Value]) -> Result<Value> {
    let key = string("label", arguments, 1)?;
    let labels = match arguments.first() {
        Some(Value::Map(row)) => row.get("Labels"),
        _ => None,
    };
    let Some(Value::String(labels)) = labels else {
        return Err(TemplateError::MissingKey { key: "Label".to_owned() });
    };
    let found = labels.split(',').find_map(|label| match label.split_once('=') {
        Some((name, value)) => (name == key).then_some(value),
        None => (label == key).then_some(""),
    });
    Ok(text(found.unwrap_or_default().to_owned()))
}

/// Each word with a capital.
fn title(whole: &str) -> String {
    let mut previous = ' ';
    let mut titled = String::with_capacity(whole.len());
    for character in whole.chars() {
        if previous.is_alphanumeric() || matches!(previous, '_' | '\'') {
            titled.push(character);
        } else {
            titled.extend(character.to_uppercase());
        }
        previous = character;
    }
    titled
}

fn text(text: String) -> Value {
    Value::String(text.into())
}

fn number(count: usize) -> Value {
    Value::Int(i64::try_from(count).unwrap_or(i64::MAX))
}

fn missing(name: &str, expected: usize, got: usize) -> TemplateError {
    TemplateError::ArgCount { name: name.to_owned(), expected, got }
}

fn wrong(name: &str, value: &Value) -> TemplateError {
    TemplateError::Exec(format!("{name}: a {} is not what it takes", value.type_name()))
}

fn one<'a>(name: &str, arguments: &'a [Value]) -> Result<&'a Value> {
    match arguments {
        [value] => Ok(value),
        _ => Err(missing(name, 1, arguments.len())),
    }
}

fn argument<'a>(name: &str, arguments: &'a [Value], at: usize) -> Result<&'a Value> {
    arguments.get(at).ok_or_else(|| missing(name, at + 1, arguments.len()))
}

fn string<'a>(name: &str, arguments: &'a [Value], at: usize) -> Result<&'a str> {
    match argument(name, arguments, at)? {
        Value::String(text) => Ok(text),
        other => Err(wrong(name, other)),
    }
}

fn count(name: &str, arguments: &[Value], at: usize) -> Result<usize> {
    match argument(name, arguments, at)? {
        Value::Int(count) => Ok(usize::try_from(*count).unwrap_or(0)),
        other => Err(wrong(name, other)),
    }
}

/// A JSON value as templates have it. What `is_shown` on a terminal has its control characters escaped but tabs and
/// line ends: an image's texts are whatever its author wrote.
pub fn to_template(value: &serde_json::Value, is_shown: bool) -> Value {
    use serde_json::Value as Json;
    let inner = |value| to_template(value, is_shown);
    match value {
        Json::Null => Value::Nil,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::Int(number),
            (None, Some(number)) => Value::Uint(number),
            (None, None) => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::String(shown(text, is_shown)),
        Json::Array(values) => Value::List(values.iter().map(inner).collect()),
        Json::Object(map) => {
            let entries = map.iter().map(|(key, value)| (shown(key, is_shown), inner(value)));
            Value::Map(Arc::new(entries.collect()))
        }
    }
}

fn shown(text: &str, is_shown: bool) -> Arc<str> {
    let is_unwanted = |character: char| character.is_control() && !matches!(character, '\t' | '\n');
    if !is_shown || !text.contains(is_unwanted) {
        return text.into();
    }
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match is_unwanted(character) {
            true => escaped.extend(character.escape_default()),
            false => escaped.push(character),
        }
    }
    escaped.into()
}

fn to_json(value: &Value) -> serde_json::Value {
    match value {
        Value::Bool(value) => (*value).into(),
        Value::Int(number) => (*number).into(),
        Value::Uint(number) => (*number).into(),
        Value::Float(number) => (*number).into(),
        Value::String(text) => text.as_ref().into(),
        Value::List(values) => values.iter().map(to_json).collect(),
        Value::Map(map) => map
            .iter()
            .map(|(key, value)| (key.to_string(), to_json(value)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        _ => serde_json::Value::Null,
    }
}
