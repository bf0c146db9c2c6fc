//! Instructions of a Dockerfile that change an image's configuration, as `--change` has them.

use serde_json::{Map, Value, json};

/// What stands between the words of a text.
const SPACES: [char; 2] = [' ', '\t'];

/// The `config` (OCI image specification) that the instructions make, one after the other. What is null takes back what
/// an image has.
///
/// # Errors
///
/// A line for the user.
pub fn config(changes: &[String]) -> Result<Value, String> {
    let mut config = Config::default();
    for change in changes {
        config.apply(change.trim()).map_err(|why| format!("--change {change:?}: {why}"))?;
    }
    Ok(config.value())
}

#[derive(Default)]
struct Config {
    /// What an instruction replaces.
    plain: Map<String, Value>,
    env: Vec<String>,
    labels: Map<String, Value>,
    ports: Map<String, Value>,
    volumes: Map<String, Value>,
    triggers: Vec<String>,
}

impl Config {
    fn apply(&mut self, change: &str) -> Result<(), String> {
        let (instruction, rest) = change.split_once(SPACES).unwrap_or((change, ""));
        let rest = rest.trim();
        if rest.is_empty() {
            return Err("nothing follows the instruction".into());
        }
        let mut set = |key: &str, value: Value| drop(self.plain.insert(key.into(), value));
        match instruction.to_ascii_uppercase().as_str() {
            "CMD" => set("Cmd", command(rest)),
            "ENTRYPOINT" => set("Entrypoint", command(rest)),
            "USER" => set("User", rest.into()),
            "ONBUILD" => self.triggers.push(rest.to_owned()),
            "WORKDIR" if rest.starts_with('/') => set("WorkingDir", rest.into()),
            "WORKDIR" => return Err("use an absolute path".into()),
            "STOPSIGNAL" => set("StopSignal", rest.into()),
            "ENV" => {
                for (key, value) in pairs(rest)? {
                    self.env.retain(|old| old.split_once('=').is_none_or(|(name, _)| name != key));
                    self.env.push(format!("{key}={value}"));
                }
            }
            "LABEL" => self.labels.extend(pairs(rest)?.into_iter().map(|(key, value)| (key, value.into()))),
            "EXPOSE" => {
                let ports = rest.split(SPACES).filter(|port| !port.is_empty()).map(port);
                let ports = ports.collect::<Result<Vec<_>, _>>()?;
                self.ports.extend(ports.into_iter().map(|port| (port, json!({}))));
            }
            "VOLUME" => {
                let volumes = json_list(rest).unwrap_or_else(|| words(rest));
                self.volumes.extend(volumes.into_iter().map(|volume| (volume, json!({}))));
            }
            other => {
                return Err(format!(
                    "unknown instruction {other:?}: use CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME or WORKDIR"
                ));
            }
        }
        Ok(())
    }

    fn value(self) -> Value {
        let mut config = self.plain;
        // A command is that of its entry point, and not of another one.
        if config.contains_key("Entrypoint") && !config.contains_key("Cmd") {
            config.insert("Cmd".into(), Value::Null);
        }
        if !self.triggers.is_empty() {
            config.insert("OnBuild".into(), json!(self.triggers));
        }
        if !self.env.is_empty() {
            config.insert("Env".into(), json!(self.env));
        }
        for (key, map) in [("Labels", self.labels), ("ExposedPorts", self.ports), ("Volumes", self.volumes)] {
            if !map.is_empty() {
                config.insert(key.into(), Value::Object(map));
            }
        }
        Value::Object(config)
    }
}

/// A command: a list in JSON, or a line for the shell.
fn command(text: &str) -> Value {
    json_list(text).map_or_else(|| json!(["/bin/sh", "-c", text]), Value::from)
}

fn json_list(text: &str) -> Option<Vec<String>> {
    text.starts_with('[').then(|| serde_json::from_str(text).ok()).flatten()
}

/// `KEY=VALUE…`, or `KEY VALUE` of which the value is all that follows.
fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let words = words(text);
    let is_old = words.first().is_some_and(|word| !word.contains('='));
    if is_old {
        let (key, value) = text.split_once(SPACES).ok_or("use KEY=VALUE")?;
        return Ok(vec![(key.to_owned(), value.trim().to_owned())]);
    }
    let pair = |word: &String| match word.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{word:?} is not of the form KEY=VALUE")),
    };
    words.iter().map(pair).collect()
}

/// The words of a text, as a shell reads them: in quotes or behind a backslash, a space does not end one.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' if quote != Some('\'') => word.get_or_insert_default().extend(characters.next()),
            _ if quote == Some(character) => quote = None,
            '"' | '\'' if quote.is_none() => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            _ if quote.is_none() && SPACES.contains(&character) => words.extend(word.take()),
            _ => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    words
}

/// `PORT[-PORT][/PROTOCOL]` as configurations have it.
fn port(text: &str) -> Result<String, String> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    let is_range = ports.split_once('-').map_or(is_port(ports), |(low, high)| is_port(low) && is_port(high));
    let protocol = protocol.to_ascii_lowercase();
    if is_range && matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        Ok(format!("{ports}/{protocol}"))
    } else {
        Err(format!("invalid port {text:?}: use PORT[/tcp|udp], as in 80 or 53/udp"))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn changed(changes: &[&str]) -> Result<Value, String> {
        config(&changes.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[rstest]
    #[case(&[], json!({}))]
    #[case(&["CMD [\"/bin/sh\", \"-l\"]"], json!({"Cmd": ["/bin/sh", "-l"]}))]
    #[case(&["cmd echo $A  b"], json!({"Cmd": ["/bin/sh", "-c", "echo $A  b"]}))]
    #[case(&["ENTRYPOINT [\"a\"]", "ENTRYPOINT [\"b\"]"], json!({"Entrypoint": ["b"], "Cmd": null}))]
    #[case(&["ENTRYPOINT [\"a\"]", "CMD b"], json!({"Entrypoint": ["a"], "Cmd": ["/bin/sh", "-c", "b"]}))]
    #[case(&["ONBUILD RUN a b", "onbuild ADD . /"], json!({"OnBuild": ["RUN a b", "ADD . /"]}))]
    #[case(&["ENV A=1 B='2 3' C=\"4\\\"\"", "ENV A=5"], json!({"Env": ["B=2 3", "C=4\"", "A=5"]}))]
    #[case(&["ENV A b  c"], json!({"Env": ["A=b  c"]}))]
    #[case(&["ENV A="], json!({"Env": ["A="]}))]
    #[case(&["LABEL a=1 \"b c\"=2", "LABEL a=3"], json!({"Labels": {"a": "3", "b c": "2"}}))]
    #[case(&["EXPOSE 80 53/UDP 8000-8010/tcp"], json!({"ExposedPorts": {"80/tcp": {}, "53/udp": {}, "8000-8010/tcp": {}}}))]
    #[case(&["VOLUME /a /b", "VOLUME [\"/c d\"]"], json!({"Volumes": {"/a": {}, "/b": {}, "/c d": {}}}))]
    #[case(&["USER nobody:1", "WORKDIR /src", "STOPSIGNAL SIGQUIT"],
        json!({"User": "nobody:1", "WorkingDir": "/src", "StopSignal": "SIGQUIT"}))]
    fn instructions_are_read(#[case] changes: &[&str], #[case] expected: Value) {
        assert_eq!(changed(changes), Ok(expected));
    }

    #[rstest]
    #[case("RUN make", "unknown instruction \"RUN\": use CMD, ENTRYPOINT")]
    #[case("CMD", "nothing follows the instruction")]
    #[case("", "nothing follows the instruction")]
    #[case("ENV A", "use KEY=VALUE")]
    #[case("ENV A=1 B", "\"B\" is not of the form KEY=VALUE")]
    #[case("ENV =1", "is not of the form KEY=VALUE")]
    #[case("EXPOSE 0", "invalid port \"0\"")]
    #[case("EXPOSE 80/http", "invalid port \"80/http\"")]
    #[case("WORKDIR src", "use an absolute path")]
    fn wrong_instructions_get_one_line(#[case] change: &str, #[case] part: &str) {
        let error = changed(&[change]).unwrap_err();
        assert!(error.starts_with("--change \"") && error.contains(part), "{error}");
    }
}
