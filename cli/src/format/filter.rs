//! `--filter NAME=VALUE`.

use std::collections::BTreeSet;
use std::str::FromStr;

use thiserror::Error;

/// The most bytes of a filter.
const MAX_LENGTH: usize = 4096;

/// Why filters can't be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FilterError {
    /// Not of the form.
    #[error("invalid filter {0:?}: use NAME=VALUE")]
    Form(String),
    /// A name that the command does not know.
    #[error("unknown filter {name:?}: use {known}")]
    Unknown {
        /// The name.
        name: String,
        /// Those that the command knows.
        known: String,
    },
    /// A value that the filter does not take.
    #[error("filter {name}: invalid value {value:?}: use {expected}")]
    Value {
        /// The filter's name.
        name: String,
        /// What was given.
        value: String,
        /// What may be given.
        expected: &'static str,
    },
}

/// One `--filter`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// What is compared.
    pub name: String,
    /// With what.
    pub value: String,
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let form = || FilterError::Form(text.chars().take(80).collect());
        let (name, value) = text.split_once('=').filter(|_| text.len() <= MAX_LENGTH).ok_or_else(form)?;
        let name = name.trim().to_lowercase();
        if name.is_empty() { Err(form()) } else { Ok(Self { name, value: value.trim().to_owned() }) }
    }
}

/// All `--filter` of a command: a value has to fit one of those with the same name, for each name.
#[derive(Clone, Debug, Default)]
pub struct Filters(Vec<Filter>);

impl Filters {
    /// Whether they allow everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Of the command that knows the filters `known`.
    ///
    /// # Errors
    ///
    /// [`FilterError::Unknown`].
    pub fn new(given: &[Filter], known: &[&str]) -> Result<Self, FilterError> {
        if let Some(filter) = given.iter().find(|filter| !known.contains(&filter.name.as_str())) {
            let name = filter.name.chars().take(80).collect();
            return Err(FilterError::Unknown { name, known: known.join(", ") });
        }
        Ok(Self(given.to_vec()))
    }

    /// The values of the filter `name`.
    pub fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |filter| filter.name == name).map(|filter| filter.value.as_str())
    }

    /// Whether `fits` is true for one of the values of `name`, or there are none.
    pub fn allow(&self, name: &str, mut fits: impl FnMut(&str) -> bool) -> bool {
        let mut values = self.values(name).peekable();
        values.peek().is_none() || values.any(&mut fits)
    }

    /// The value of a filter that is true or false; the last one counts.
    ///
    /// # Errors
    ///
    /// [`FilterError::Value`].
    pub fn flag(&self, name: &str) -> Result<Option<bool>, FilterError> {
        let read = |value: &str| match value {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
            value => Err(invalid(name, value, "true or false")),
        };
        self.values(name).map(read).try_fold(None, |_, value| value.map(Some))
    }

    /// Whether `labels` has all labels that `--filter label=KEY[=VALUE]` names. Labels are the one filter of which
    /// every value has to fit.
    pub fn allow_labels<'a>(&self, value_of: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.values("label").all(|wanted| has_label(&value_of, wanted))
    }

    /// Whether `labels` has none of the labels that `--filter label!=KEY[=VALUE]` names.
    pub fn allow_without_labels<'a>(&self, value_of: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.values("label!").any(|unwanted| has_label(&value_of, unwanted))
    }
}

fn has_label<'a>(value_of: &impl Fn(&str) -> Option<&'a str>, wanted: &str) -> bool {
    match wanted.split_once('=') {
        Some((key, value)) => value_of(key) == Some(value),
        None => value_of(wanted).is_some(),
    }
}

/// Whether `pattern` is found in `name`, as docker's filters of names look for it: of regular expressions there are
/// those that names have a use for, `^`, `$`, `.` and `*`.
pub fn matches_name(pattern: &str, name: &str) -> bool {
    let (is_start, pattern) = pattern.strip_prefix('^').map_or((false, pattern), |rest| (true, rest));
    let (is_end, pattern) = pattern.strip_suffix('$').map_or((false, pattern), |rest| (true, rest));
    // A letter or any, and whether there may be any number of it.
    let mut parts: Vec<(Option<char>, bool)> = Vec::new();
    for letter in pattern.chars() {
        match (letter, parts.last_mut()) {
            ('*', Some(last)) => last.1 = true,
            ('.', _) => parts.push((None, false)),
            (letter, _) => parts.push((Some(letter), false)),
        }
    }
    // Which parts may come next. All ways are followed at once, so that no pattern takes long.
    let skip_optional = |mut next: BTreeSet<usize>| {
        for (index, _) in parts.iter().enumerate().filter(|(_, (_, repeats))| *repeats) {
            if next.contains(&index) {
                next.insert(index + 1);
            }
        }
        next
    };
    let mut next = skip_optional(BTreeSet::from([0]));
    for letter in name.chars() {
        if !is_end && next.contains(&parts.len()) {
            return true;
        }
        let fits = |(index, (wanted, _)): &(usize, &(Option<char>, bool))| {
            next.contains(index) && wanted.is_none_or(|wanted| wanted == letter)
        };
        let reached = parts.iter().enumerate().filter(fits);
        let mut then: BTreeSet<_> =
            reached.map(|(index, (_, repeats))| if *repeats { index } else { index + 1 }).collect();
        if !is_start {
            then.insert(0);
        }
        next = skip_optional(then);
    }
    next.contains(&parts.len())
}

/// A [`FilterError::Value`].
pub fn invalid(name: &str, value: &str, expected: &'static str) -> FilterError {
    FilterError::Value { name: name.to_owned(), value: value.chars().take(80).collect(), expected }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn filters(texts: &[&str]) -> Filters {
        let given: Vec<Filter> = texts.iter().map(|text| text.parse().unwrap()).collect();
        Filters::new(&given, &["name", "label", "label!", "dangling"]).unwrap()
    }

    #[rstest]
    #[case("name", "invalid filter \"name\": use NAME=VALUE")]
    #[case("=x", "invalid filter \"=x\": use NAME=VALUE")]
    #[case("", "invalid filter \"\": use NAME=VALUE")]
    fn a_filter_has_a_name_and_a_value(#[case] text: &str, #[case] line: &str) {
        assert_eq!(text.parse::<Filter>().unwrap_err().to_string(), line);
    }

    #[test]
    fn unknown_names_are_answered_with_those_that_there_are() {
        let error = Filters::new(&["color=red".parse().unwrap()], &["name", "label"]).unwrap_err();
        assert_eq!(error.to_string(), "unknown filter \"color\": use name, label");
        let error = filters(&["dangling=perhaps"]).flag("dangling").unwrap_err();
        assert_eq!(error.to_string(), "filter dangling: invalid value \"perhaps\": use true or false");
    }

    #[rstest]
    #[case(&[], true)]
    #[case(&["name=web"], true)]
    #[case(&["name=db", "name=web"], true)]
    #[case(&["name=db"], false)]
    #[case(&["name=web", "label=a"], true)]
    #[case(&["name=web", "label=a=1"], true)]
    #[case(&["name=web", "label=a=2"], false)]
    #[case(&["label=a=1", "label=b"], false)]
    #[case(&["label!=b"], true)]
    #[case(&["label!=a"], false)]
    #[case(&["label!=a=2"], true)]
    #[case(&["NAME= web "], true)]
    fn values_of_a_name_are_alternatives_and_names_are_not(#[case] texts: &[&str], #[case] expected: bool) {
        let filters = filters(texts);
        let label = |key: &str| (key == "a").then_some("1");
        let allowed = filters.allow("name", |name| name == "web")
            && filters.allow_labels(label)
            && filters.allow_without_labels(label);
        assert_eq!(allowed, expected);
    }

    #[rstest]
    #[case("web", &["web", "my-web", "web1"], &["we", "b"])]
    #[case("^web$", &["web"], &["web1", "my-web", ""])]
    #[case("^web", &["web", "web1"], &["my-web"])]
    #[case("web$", &["web", "my-web"], &["web1"])]
    #[case("w.b", &["web", "xw-by"], &["wb"])]
    #[case("^a.*b$", &["ab", "a-b", "abab"], &["aba", "xab"])]
    #[case("^ab*$", &["a", "abbb"], &["abc"])]
    #[case("", &["", "web"], &[])]
    #[case("^$", &[""], &["web"])]
    #[case("*", &["a*b"], &["ab"])]
    #[case(&".*".repeat(2000), &["web"], &[])]
    fn names_are_found_as_docker_finds_them(
        #[case] pattern: &str,
        #[case] found: &[&str],
        #[case] not: &[&str],
    ) {
        assert!(found.iter().all(|name| matches_name(pattern, name)), "{pattern}");
        assert!(!not.iter().any(|name| matches_name(pattern, name)), "{pattern}");
    }

    #[test]
    fn the_last_flag_counts() {
        assert_eq!(filters(&[]).flag("dangling"), Ok(None));
        assert_eq!(filters(&["dangling=true", "dangling=0"]).flag("dangling"), Ok(Some(false)));
    }
}
