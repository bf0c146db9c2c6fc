//! Bodies of requests.

use serde::Deserialize;
use serde_json::error::Category;

use super::response::Response;

/// Reads a request's body.
pub(super) fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Response> {
    if body.is_empty() {
        return Err(Response::fault(400, "the request has no body; it takes a JSON object"));
    }
    serde_json::from_slice(body).map_err(|error| Response::fault(400, &explain(&error)))
}

/// The error in plain words, without Rust's types.
fn explain(error: &serde_json::Error) -> String {
    let at = format!("(line {}, column {})", error.line(), error.column());
    if error.classify() != Category::Data {
        return format!("the body is not valid JSON {at}");
    }
    let message = error.to_string();
    let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
    if message.starts_with("invalid length ") {
        return format!("the body has the wrong form: use an object {at}");
    }
    let (what, expected) = message.split_once(", expected ").unwrap_or((message, ""));
    let expected = expected.trim_start_matches("one of ").replace('`', "");
    let name = |prefix: &str| Some(what.strip_prefix(prefix)?.trim_matches('`').to_owned());
    if let Some(value) = name("unknown variant ") {
        format!("unknown value {value:?}: use {expected}")
    } else if let Some(field) = name("unknown field ") {
        format!("unknown field {field:?}; the fields are {expected}")
    } else if let Some(field) = name("missing field ") {
        format!("the field {field:?} is missing")
    } else if let Some(value) = name("invalid type: ").or_else(|| name("invalid value: ")) {
        let kind = match expected.as_str() {
            "u8" | "u16" | "u32" | "u64" | "usize" => "a number that is not negative".into(),
            "a boolean" => "true or false".into(),
            other if other.starts_with("struct ") => "an object".into(),
            other => other.to_owned(),
        };
        format!("invalid value {}: use {kind} {at}", value.replace('`', ""))
    } else {
        format!("{message} {at}")
    }
}

#[cfg(test)]
mod tests {
    use instance::api::{BalloonUpdate, VmUpdate};
    use rstest::rstest;

    use super::*;

    fn explained<T: for<'a> Deserialize<'a>>(body: &str) -> String {
        explain(&serde_json::from_str::<T>(body).err().expect("the body is wrong"))
    }

    #[rstest]
    #[case(r#"{"state": "Stopped"}"#, "unknown value \"Stopped\": use Paused or Resumed")]
    #[case(r"{}", "the field \"state\" is missing")]
    #[case(r#"{"state": "Paused"#, "the body is not valid JSON (line 1, column 17)")]
    #[case("nonsense", "the body is not valid JSON (line 1, column 2)")]
    #[case("[]", "the body has the wrong form: use an object")]
    #[case(r#"{"state": 5}"#, "")]
    fn errors_have_no_words_of_rust(#[case] body: &str, #[case] expected: &str) {
        let text = explained::<VmUpdate>(body);
        assert!(text.starts_with(expected), "{text}");
        assert!(
            !["variant", "struct", "enum", "serde", "`"].iter().any(|word| text.contains(word)),
            "{text}"
        );
    }

    #[rstest]
    #[case(r#"{"amount_mib": "5"}"#, "invalid value string \"5\": use a number that is not negative")]
    #[case(r#"{"amount_mib": -5}"#, "invalid value integer -5: use a number that is not negative")]
    #[case(r#"{"amount": 5}"#, "")]
    fn numbers_are_asked_for(#[case] body: &str, #[case] expected: &str) {
        let text = explained::<BalloonUpdate>(body);
        assert!(text.starts_with(expected), "{text}");
    }
}
