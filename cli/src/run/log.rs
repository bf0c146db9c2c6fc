//! What becomes of a container's output: `--log-driver` and `--log-opt`.

use std::collections::BTreeMap;

use clap::Args;
use container::{LogLimits, LogTarget};
use instance::{Entry, Kept, VmName};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::order::Order;

/// The most bytes of a tag.
const MAX_TAG: usize = 1024;

/// What becomes of a container's output.
#[derive(Args)]
pub struct LogArguments {
    /// Keep the output: json-file, journald, or none
    ///
    /// `mvm logs` shows what is kept. local means the same as json-file. journald is systemd's journal, with docker's
    /// fields: `journalctl CONTAINER_NAME=NAME` shows it.
    #[arg(
        long,
        value_name = "DRIVER",
        default_value = "json-file",
        value_parser = ["json-file", "local", "journald", "none"],
        hide_possible_values = true,
        hide_short_help = true
    )]
    log_driver: String,

    /// Set how much is kept, or what `mvm logs --details` shows: max-size=10m, max-file=2, tag, labels, env
    ///
    /// tag=TEMPLATE is a Go template of ID, FullID, Name, ImageID, ImageFullID, ImageName and DaemonName. labels=NAME,…
    /// and env=NAME,… name labels and variables of the container.
    #[arg(long, value_name = "OPTION", value_parser = log_option, hide_short_help = true)]
    log_opt: Vec<LogOption>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum LogOption {
    Size(u64),
    Files(u32),
    Tag(String),
    Labels(Vec<String>),
    Env(Vec<String>),
}

/// What is noted with a container's output. What another version of mvm has beyond it is passed over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogDetails {
    /// It goes to systemd's journal.
    pub is_journal: bool,
    /// A Go template of the container's names.
    pub tag: Option<String>,
    /// Labels by their names.
    pub labels: Vec<String>,
    /// Variables by their names.
    pub env: Vec<String>,
}

/// Reads an option of docker's drivers.
fn log_option(text: &str) -> Result<LogOption, String> {
    let invalid = |expected: &str| Err(format!("invalid log option {text:?}: use {expected}"));
    let Some((name, value)) = text.split_once('=') else {
        return invalid("max-size=SIZE, max-file=NUMBER, tag=TEMPLATE, labels=NAMES or env=NAMES");
    };
    let names = || value.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    match name {
        "max-size" => {
            let size = value.parse().ok().map(vmm::MemorySize::bytes).filter(|size| *size > 0);
            size.map_or_else(|| invalid("max-size=SIZE, as in 10m"), |size| Ok(LogOption::Size(size)))
        }
        "max-file" => {
            let files = value.parse().ok().filter(|number| (1..=1000).contains(number));
            files.map_or_else(|| invalid("max-file=1 to 1000"), |files| Ok(LogOption::Files(files)))
        }
        "tag" => match tag(value, &names_of("0123456789ab", None, "", "")) {
            Ok(_) => Ok(LogOption::Tag(value.to_owned())),
            Err(error) => Err(format!("invalid log option {text:?}: {error}")),
        },
        "labels" => Ok(LogOption::Labels(names())),
        "env" => Ok(LogOption::Env(names())),
        "labels-regex" | "env-regex" => {
            let plain = name.trim_end_matches("-regex");
            invalid(&format!("{plain}=NAME,…: expressions are not supported"))
        }
        "compress" => invalid("max-size and max-file: files of output are not compressed"),
        "mode" | "max-buffer-size" => {
            invalid("max-size and max-file: output is kept before it is passed on, and nothing is buffered")
        }
        _ => invalid("max-size, max-file, tag, labels or env"),
    }
}

/// The names by which a tag can call a container.
fn names_of(id: &str, name: Option<&str>, image_id: &str, image_name: &str) -> Value {
    let digest = image_id.strip_prefix("sha256:").unwrap_or(image_id);
    json!({
        "ID": id.get(..12).unwrap_or(id),
        "FullID": id,
        "Name": name.unwrap_or(id),
        "ImageID": digest.get(..12).unwrap_or(digest),
        "ImageFullID": image_id,
        "ImageName": image_name,
        "DaemonName": "mvm",
    })
}

/// The tag that `template` makes of a container's names.
fn tag(template: &str, names: &Value) -> Result<String, String> {
    let mut text = crate::format::apply(template, names).map_err(|error| crate::chain(&error))?;
    text.truncate(text.floor_char_boundary(MAX_TAG));
    Ok(text)
}

impl LogArguments {
    /// How much is kept of the output in files, if any is, and what is noted with it.
    ///
    /// # Errors
    ///
    /// A line for the user: an option that is for files alone.
    pub fn options(self) -> Result<(Option<LogLimits>, LogDetails), String> {
        let is_of_files = |option: &LogOption| matches!(option, LogOption::Size(_) | LogOption::Files(_));
        let is_journal = self.log_driver == "journald";
        if is_journal && self.log_opt.iter().any(is_of_files) {
            return Err(
                "max-size and max-file are not for --log-driver journald: set SystemMaxUse= in journald.conf"
                    .into(),
            );
        }
        let (mut limits, mut details) =
            (LogLimits::default(), LogDetails { is_journal, ..LogDetails::default() });
        for option in self.log_opt {
            match option {
                LogOption::Size(size) => limits.size = size,
                LogOption::Files(files) => limits.files = files,
                LogOption::Tag(tag) => details.tag = Some(tag).filter(|tag| !tag.is_empty()),
                LogOption::Labels(labels) => details.labels = labels,
                LogOption::Env(env) => details.env = env,
            }
        }
        let has_files = !is_journal && self.log_driver != "none";
        Ok((has_files.then_some(limits), details))
    }
}

impl LogDetails {
    /// `HostConfig.LogConfig` of docker, where the output is kept in files as `limits` says.
    pub fn shown(&self, limits: Option<LogLimits>) -> Value {
        let driver = match limits {
            Some(_) => "json-file",
            None if self.is_journal => "journald",
            None => "none",
        };
        let mut config = BTreeMap::new();
        if let Some(limits) = limits.filter(|limits| *limits != LogLimits::default()) {
            config.insert("max-size", limits.size.to_string());
            config.insert("max-file", limits.files.to_string());
        }
        config.extend(self.tag.clone().map(|tag| ("tag", tag)));
        for (name, names) in [("labels", &self.labels), ("env", &self.env)] {
            if !names.is_empty() {
                config.insert(name, names.join(","));
            }
        }
        json!({ "Type": driver, "Config": config })
    }

    /// Names and values that are noted with the output of the container `entry`, as `mvm logs --details` shows them.
    pub fn attributes(&self, entry: &Entry) -> BTreeMap<String, String> {
        let of = |name: &String| entry.labels.get_key_value(name);
        let mut all: BTreeMap<String, String> =
            self.labels.iter().filter_map(of).map(|(name, value)| (name.clone(), value.clone())).collect();
        let variables = entry.details.pointer("/Config/Env").and_then(Value::as_array).into_iter().flatten();
        // Later ones replace those of the image.
        let variables = variables.filter_map(Value::as_str).filter_map(|variable| variable.split_once('='));
        let wanted = variables.filter(|(name, _)| self.env.iter().any(|wanted| wanted == name));
        all.extend(wanted.map(|(name, value)| (name.to_owned(), value.to_owned())));
        // It was tried when it was given.
        let tag = self.tag.as_ref().and_then(|template| tag(template, &names(entry)).ok());
        all.extend(tag.map(|tag| ("tag".to_owned(), tag)));
        all
    }
}

/// Where the output of the container `entry` goes that was ordered by `order`.
pub fn target(order: &Order, entry: &Entry) -> Option<LogTarget> {
    if !order.log_details.is_journal {
        return order.log.map(LogTarget::Files);
    }
    let mut attributes = order.log_details.attributes(entry);
    let id = entry.id.as_str();
    let tag = attributes.remove("tag").unwrap_or_else(|| id.get(..12).unwrap_or(id).to_owned());
    let name = entry.name.as_ref().map_or(id, VmName::as_str);
    let own = [
        ("CONTAINER_ID", id.get(..12).unwrap_or(id)),
        ("CONTAINER_ID_FULL", id),
        ("CONTAINER_NAME", name),
        ("CONTAINER_TAG", &tag),
        ("IMAGE_NAME", &entry.image),
        ("SYSLOG_IDENTIFIER", &tag),
    ];
    let own = own.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let others = attributes.iter().map(|(name, value)| (container::field_name(name), value.clone()));
    Some(LogTarget::Journal(own.into_iter().chain(others).collect()))
}

/// Why `mvm logs` does not show the output of a container that goes to systemd's journal, and what does.
pub fn in_journal(kept: &Kept) -> Option<String> {
    let is_journal = kept.order::<Order>().is_ok_and(|order| order.log_details.is_journal);
    let id = &kept.entry.id;
    is_journal.then(|| format!("it is in systemd's journal: `journalctl CONTAINER_ID_FULL={id}` shows it"))
}

/// What `mvm logs --details` prints before each line of a container: names and values as in the query of a URL.
pub fn log_details(kept: &Kept) -> String {
    // One of another version of mvm has none.
    let details = kept.order::<Order>().map(|order| order.log_details).unwrap_or_default();
    let pairs = details.attributes(&kept.entry);
    let pairs = pairs.iter().map(|(name, value)| format!("{}={}", escaped(name), escaped(value)));
    pairs.collect::<Vec<_>>().join(",")
}

/// `text` as Go's `url.QueryEscape` writes it.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b' ' => escaped.push('+'),
            byte if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) => escaped.push(char::from(byte)),
            byte => escaped += &format!("%{byte:02X}"),
        }
    }
    escaped
}

/// The names of `entry` for a tag.
fn names(entry: &Entry) -> Value {
    let name = entry.name.as_ref().map(VmName::as_str);
    names_of(entry.id.as_str(), name, entry.image_id.as_deref().unwrap_or_default(), &entry.image)
}

#[cfg(test)]
mod tests {
    use instance::Process;
    use rstest::rstest;

    use super::*;

    fn arguments(options: &[&str], driver: &str) -> LogArguments {
        let log_opt = options.iter().map(|option| log_option(option).unwrap()).collect();
        LogArguments { log_driver: driver.into(), log_opt }
    }

    #[test]
    fn options_are_dockers() {
        let limits = |options: &[&str], driver: &str| arguments(options, driver).options().unwrap().0;
        assert_eq!(limits(&[], "json-file"), Some(LogLimits::default()));
        let set = limits(&["max-size=1m", "max-file=5"], "local");
        assert_eq!(set, Some(LogLimits { size: 1 << 20, files: 5 }));
        assert_eq!(limits(&["max-size=1m"], "none"), None);
        assert_eq!(limits(&["tag=x"], "journald"), None);
        for option in ["max-size=1m", "max-file=2"] {
            let line = arguments(&[option], "journald").options().unwrap_err();
            assert!(line.contains("are not for --log-driver journald"), "{line}");
        }
    }

    #[rstest]
    #[case("", "use max-size=SIZE, max-file=NUMBER, tag=TEMPLATE")]
    #[case("max-size", "use max-size=SIZE, max-file=NUMBER, tag=TEMPLATE")]
    #[case("max-size=x", "use max-size=SIZE, as in 10m")]
    #[case("max-size=0", "use max-size=SIZE, as in 10m")]
    #[case("max-file=0", "use max-file=1 to 1000")]
    #[case("max-file=1001", "use max-file=1 to 1000")]
    #[case("compress=true", "files of output are not compressed")]
    #[case("mode=non-blocking", "nothing is buffered")]
    #[case("labels-regex=^a", "use labels=NAME,…")]
    #[case("env-regex=^a", "use env=NAME,…")]
    #[case("tag={{.Nam}}", "there is no field")]
    #[case("tag={{", "invalid template")]
    #[case("syslog-address=x", "use max-size, max-file, tag, labels or env")]
    fn others_are_refused_by_name(#[case] text: &str, #[case] says: &str) {
        let error = log_option(text).unwrap_err();
        assert!(error.contains(&format!("invalid log option {text:?}: ")) && error.contains(says), "{error}");
    }

    #[test]
    fn details_are_escaped_as_in_urls() {
        assert_eq!(escaped("a-Z_0.~ b=,ü/"), "a-Z_0.~+b%3D%2C%C3%BC%2F");
    }

    #[test]
    fn labels_variables_and_the_tag_are_noted() {
        let options = ["labels=a,b,", "env=A,PATH,MISSING", "tag={{.Name}}/{{.ID}}/{{.ImageName}}"];
        let (_, details) = arguments(&options, "local").options().unwrap();
        let entry: Entry = serde_json::from_value(json!({
            "id": "fedcba987654", "name": "web", "kind": "container", "created": 0,
            "process": Process::own().unwrap(),
            "image": "nginx", "image_id": "sha256:0123456789abcdef",
            "labels": {"a": "2", "c": "3"},
            "details": {"Config": {"Env": ["PATH=/bin", "A=0", "A=1=2", "B=3"]}},
        }))
        .unwrap();
        let pairs = [("A", "1=2"), ("PATH", "/bin"), ("a", "2"), ("tag", "web/fedcba987654/nginx")];
        let expected = pairs.map(|(name, value)| (name.into(), value.into()));
        assert_eq!(details.attributes(&entry), expected.into());
        assert!(LogDetails::default().attributes(&entry).is_empty());
    }
}
