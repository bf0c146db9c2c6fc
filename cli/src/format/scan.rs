//! A template's text before it is parsed: its actions, and what docker replaces in it.

/// A part of a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// What is written as it is.
    Text(&'a str),
    /// From `{{` to `}}`, or to the end where that is missing.
    Action(&'a str),
}

/// The parts of a template, in order.
pub fn parts(template: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let mut rest = template;
    while let Some(start) = rest.find("{{") {
        let (text, action) = rest.split_at(start);
        let (action, after) = action.split_at(action_length(action));
        parts.push(Part::Text(text));
        parts.push(Part::Action(action));
        rest = after;
    }
    parts.push(Part::Text(rest));
    parts.retain(|part| *part != Part::Text(""));
    parts
}

/// The bytes of the action that `text` begins with. `}}` in a quoted text or a comment does not end it.
fn action_length(text: &str) -> usize {
    let start = text.get(2..).unwrap_or_default();
    let comment = start.strip_prefix("- ").unwrap_or(start);
    if comment.starts_with("/*") {
        let end = text.find("*/").and_then(|at| Some(at + text.get(at..)?.find("}}")?));
        return end.map_or(text.len(), |end| end + 2);
    }
    let mut quote = None;
    let mut is_escaped = false;
    let mut previous = '\0';
    for (at, character) in text.char_indices().skip(2) {
        match quote {
            Some(_) if is_escaped => is_escaped = false,
            Some('`') if character == '`' => quote = None,
            Some('`') => {}
            Some(_) if character == '\\' => is_escaped = true,
            Some(mark) if mark == character => quote = None,
            Some(_) => {}
            None if matches!(character, '"' | '`' | '\'') => quote = Some(character),
            None if character == '}' && previous == '}' => return at + 1,
            None => {}
        }
        previous = if quote.is_none() { character } else { '\0' };
    }
    text.len()
}

/// A template for lists as docker reads it: `\t` and `\n` between actions are a tab and a line end.
pub fn with_escapes(template: &str) -> String {
    let escapes = |part: &Part<'_>| match part {
        Part::Text(text) => text.replace("\\t", "\t").replace("\\n", "\n"),
        Part::Action(action) => (*action).to_owned(),
    };
    parts(template).iter().map(escapes).collect()
}

/// A template with a function in place of the method `.Label "key"` that docker's rows have.
pub fn with_label(template: &str) -> String {
    let labels = |part: &Part<'_>| match part {
        Part::Text(text) => (*text).to_owned(),
        Part::Action(action) => action
            .replace("{{.Label ", "{{label . ")
            .replace(" .Label \"", " label . \"")
            .replace("(.Label \"", "(label . \""),
    };
    parts(template).iter().map(labels).collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("a{{.B}}c", &[Part::Text("a"), Part::Action("{{.B}}"), Part::Text("c")])]
    #[case(r#"{{"}}"}}x"#, &[Part::Action(r#"{{"}}"}}"#), Part::Text("x")])]
    #[case(r#"{{"\"}}"}}x"#, &[Part::Action(r#"{{"\"}}"}}"#), Part::Text("x")])]
    #[case("{{`\\`}}x", &[Part::Action("{{`\\`}}"), Part::Text("x")])]
    #[case("{{/* \"}} */}}x", &[Part::Action("{{/* \"}} */}}"), Part::Text("x")])]
    #[case("{{.A", &[Part::Action("{{.A")])]
    #[case("{{}}", &[Part::Action("{{}}")])]
    #[case("{{", &[Part::Action("{{")])]
    #[case("}}", &[Part::Text("}}")])]
    #[case("é{{é}}é", &[Part::Text("é"), Part::Action("{{é}}"), Part::Text("é")])]
    fn actions_are_found(#[case] template: &str, #[case] expected: &[Part<'_>]) {
        assert_eq!(parts(template), expected);
    }

    #[test]
    fn only_text_has_escapes() {
        assert_eq!(with_escapes(r#"\t{{"\t"}}\n"#), "\t{{\"\\t\"}}\n");
    }

    #[test]
    fn labels_are_a_function() {
        assert_eq!(with_label(r#".Label "a" {{.Label "b"}}"#), r#".Label "a" {{label . "b"}}"#);
        assert_eq!(with_label(r#"{{upper (.Label "b")}}"#), r#"{{upper (label . "b")}}"#);
        assert_eq!(with_label("{{.Labels}}"), "{{.Labels}}");
    }
}
