//! `mvm image inspect`.

use clap::Args;
use image::{Digest, Image, Store};
use serde_json::{Map, Value, json};

use super::{missing, store};
use crate::chain;
use crate::format::Format;
use crate::inspect::print_all;
use crate::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  mvm image inspect alpine
  mvm image inspect --format '{{.Config.Env}}' alpine
  mvm image inspect --format '{{json .RootFS.Layers}}' alpine";

/// What the configuration of docker's images has, and what stands for it where it is missing.
const CONFIG: &[(&str, Value)] = &[
    ("ArgsEscaped", Value::Bool(false)),
    ("Cmd", Value::Null),
    ("Domainname", Value::Null),
    ("Entrypoint", Value::Null),
    ("Env", Value::Null),
    ("ExposedPorts", Value::Null),
    ("Healthcheck", Value::Null),
    ("Hostname", Value::Null),
    ("Labels", Value::Null),
    ("OnBuild", Value::Null),
    ("Shell", Value::Null),
    ("StopSignal", Value::Null),
    ("User", Value::Null),
    ("Volumes", Value::Null),
    ("WorkingDir", Value::Null),
];
/// Those of them that are texts: where one is missing it is empty.
const TEXTS: [&str; 5] = ["Domainname", "Hostname", "StopSignal", "User", "WorkingDir"];

/// Arguments of `mvm image inspect`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct InspectCommand {
    /// Print json or a Go template
    #[arg(long, short, value_name = "FORMAT")]
    format: Option<Format>,

    /// The images: references or IDs
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

impl InspectCommand {
    /// Shows all that is known of images. Those that exist are shown where others do not.
    pub fn run(self) -> ExitCode {
        print_all(self.format.as_ref(), &self.images, |name| inspect(name)?.ok_or_else(|| missing(name)))
    }
}

/// All that is known of the image that `name` means, with docker's fields; `None` where there is none.
///
/// # Errors
///
/// A line for the user.
pub fn inspect(name: &str) -> Result<Option<Value>, String> {
    let store = store()?;
    let Some(image) = store.resolve(name).map_err(|error| chain(&error))? else { return Ok(None) };
    Ok(Some(value(&image, &document(&store, image.id)?)))
}

/// The configuration as it came.
fn document(store: &Store, id: Digest) -> Result<Value, String> {
    let bytes = store.configuration(id).map_err(|error| chain(&error))?;
    serde_json::from_slice(&bytes).map_err(|error| format!("invalid image configuration {id}: {error}"))
}

fn value(image: &Image, document: &Value) -> Value {
    let text = |key: &str| document.get(key).and_then(Value::as_str).unwrap_or_default();
    let comment = image.history().last().and_then(|step| step.comment.clone()).unwrap_or_default();
    let layers: Vec<String> = image.layers.iter().map(|layer| layer.diff_id.to_string()).collect();
    let names = |references: &[image::Reference]| -> Vec<String> {
        references.iter().map(ToString::to_string).collect()
    };
    let mut value = json!({
        "Id": image.id.to_string(),
        "RepoTags": names(&image.references),
        "RepoDigests": names(&image.digests),
        "Parent": "",
        "Comment": comment,
        "Created": text("created"),
        "DockerVersion": text("docker_version"),
        "Author": text("author"),
        "Config": config(document.get("config")),
        "Architecture": text("architecture"),
        "Os": text("os"),
        "Size": image.size,
        "VirtualSize": image.size,
        "GraphDriver": {"Data": null, "Name": "erofs"},
        "RootFS": {"Type": "layers", "Layers": layers},
        "Metadata": {"LastTagTime": "0001-01-01T00:00:00Z"},
    });
    let variant = text("variant");
    if !variant.is_empty()
        && let Some(fields) = value.as_object_mut()
    {
        fields.insert("Variant".into(), variant.into());
    }
    value
}

/// The image's `Config`, with those of docker's fields that it does not have.
fn config(given: Option<&Value>) -> Value {
    let fields = CONFIG.iter().map(|(name, missing)| {
        let given = given.and_then(|given| given.get(*name)).filter(|value| !value.is_null());
        let absent = if TEXTS.contains(name) { Value::from("") } else { missing.clone() };
        ((*name).to_owned(), given.cloned().unwrap_or(absent))
    });
    Value::Object(fields.collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_has_all_fields_that_templates_may_name() {
        let empty = config(None);
        assert_eq!(empty.get("User"), Some(&json!("")));
        assert_eq!(empty.get("Env"), Some(&Value::Null));
        let given = json!({"Env": ["A=1"], "User": null, "Healthcheck": {"Test": ["NONE"]}, "Memory": 5});
        let given = config(Some(&given));
        assert_eq!(given.get("Env"), Some(&json!(["A=1"])));
        assert_eq!(given.get("User"), Some(&json!("")));
        assert_eq!(given.pointer("/Healthcheck/Test/0"), Some(&json!("NONE")));
        assert_eq!(given.get("Memory"), None);
        assert_eq!(config(Some(&json!("no object"))), empty);
    }
}
