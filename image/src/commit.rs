//! A new image of an image and what a container has changed in it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use serde_json::{Map, Value, json};

use crate::digest::Digest;
use crate::import::{ImportError, digest, put_aside};
use crate::load::Loaded;
use crate::reference::Reference;
use crate::store::{ImageRecord, InvalidConfig, MAX_DOCUMENT, Store, StoreError, io_error, read_config};

/// What is said of a new image.
#[derive(Clone, Debug, Default)]
pub struct Commit<'a> {
    /// The image that was changed: its ID.
    pub parent: &'a str,
    /// What its `config` (OCI image specification) gets, one after the other: variables, labels, ports and volumes are
    /// added to those that are there, a null removes what is there, and all else replaces it.
    pub changes: &'a [Value],
    /// When it was made (RFC 3339).
    pub created: &'a str,
    /// What made it: the container's command.
    pub created_by: &'a str,
    /// Who made it.
    pub author: Option<&'a str>,
    /// What its history says.
    pub comment: &'a str,
}

impl Store {
    /// Makes an image of the one that `commit` names and `layer`, a tar stream of an image's layer.
    ///
    /// # Errors
    ///
    /// [`ImportError`].
    pub fn commit(
        &self,
        layer: impl Read,
        commit: &Commit<'_>,
        reference: Option<&Reference>,
    ) -> Result<Loaded, ImportError> {
        let session = self.session()?;
        let parent = self.resolve(commit.parent)?;
        let parent = parent.ok_or_else(|| StoreError::NoImage(commit.parent.to_owned()))?.id;
        let path = session.temporary();
        put_aside(&path, layer)?;
        let mut file = File::open(&path).map_err(io_error("read", &path))?;
        let diff_id = digest(&mut file)?;
        file.seek(SeekFrom::Start(0)).map_err(ImportError::Read)?;
        session.add_layer(diff_id, file)?;
        let document: Value = serde_json::from_slice(&self.document(parent)?)
            .map_err(|error| InvalidConfig::Json(error.to_string()))?;
        let document = committed(document, diff_id, commit)?.to_string().into_bytes();
        if u64::try_from(document.len()).is_ok_and(|length| length > MAX_DOCUMENT) {
            return Err(InvalidConfig::Json("it has more than 4 MiB".to_owned()).into());
        }
        let (_, diff_ids) = read_config(&document, None)?;
        let id = session.add_document(&document)?;
        let references: Vec<_> = reference.map(|reference| (reference.clone(), None)).into_iter().collect();
        session.add_image(id, &ImageRecord::of_layers(&diff_ids), &references)?;
        Ok(Loaded { id, references: references.into_iter().map(|(reference, _)| reference).collect() })
    }
}

/// The configuration of the new image.
fn committed(document: Value, layer: Digest, commit: &Commit<'_>) -> Result<Value, InvalidConfig> {
    let invalid = |what: &str| InvalidConfig::Json(format!("{what} is not what the specification has there"));
    let Value::Object(mut document) = document else { return Err(invalid("the configuration")) };
    let mut config = match document.remove("config") {
        Some(Value::Object(config)) => config,
        None | Some(Value::Null) => Map::new(),
        Some(_) => return Err(invalid("config")),
    };
    for change in commit.changes {
        if let Value::Object(change) = change {
            merge(&mut config, change);
        }
    }
    document.insert("config".into(), config.into());
    let layers = document.get_mut("rootfs").and_then(|rootfs| rootfs.get_mut("diff_ids"));
    let layers = layers.and_then(Value::as_array_mut).ok_or_else(|| invalid("rootfs"))?;
    let before = layers.len();
    layers.push(json!(layer));
    let mut step =
        json!({"created": commit.created, "created_by": commit.created_by, "comment": commit.comment});
    if let (Some(author), Some(step)) = (commit.author, step.as_object_mut()) {
        step.insert("author".into(), author.into());
        document.insert("author".into(), author.into());
    }
    let mut history = match document.remove("history") {
        Some(Value::Array(history)) => history,
        _ => Vec::new(),
    };
    // The parent's layers have steps before that of the new one, also where the parent tells nothing of them.
    let has_layer = |step: &&Value| step.get("empty_layer").and_then(Value::as_bool) != Some(true);
    let told = history.iter().filter(has_layer).count();
    history.extend((told..before).map(|_| json!({})));
    history.push(step);
    document.insert("history".into(), history.into());
    document.insert("created".into(), commit.created.into());
    // What docker has written of the container that made the parent.
    for old in ["container", "container_config", "docker_version"] {
        document.remove(old);
    }
    Ok(document.into())
}

/// Adds what `change` says to `config`.
fn merge(config: &mut Map<String, Value>, change: &Map<String, Value>) {
    for (key, value) in change {
        match (config.get_mut(key), value) {
            (_, Value::Null) => drop(config.remove(key)),
            (Some(Value::Array(old)), Value::Array(new)) if key == "Env" => {
                for variable in new {
                    let name = |value: &Value| {
                        let text = value.as_str().unwrap_or_default();
                        text.split_once('=').map_or(text, |(name, _)| name).to_owned()
                    };
                    match old.iter_mut().find(|old| name(old) == name(variable)) {
                        Some(old) => *old = variable.clone(),
                        None => old.push(variable.clone()),
                    }
                }
            }
            (Some(Value::Array(old)), Value::Array(new)) if key == "OnBuild" => {
                old.extend(new.iter().cloned())
            }
            (Some(Value::Object(old)), Value::Object(new)) => {
                old.extend(new.iter().map(|(key, value)| (key.clone(), value.clone())));
            }
            (_, value) => drop(config.insert(key.clone(), value.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::tar;

    fn parent(store: &Store, config: Value) -> String {
        let archive = tar(&[("bin/hello", b"hello"), ("etc/old", b"old")]);
        let history = ("2024-05-06T07:08:09Z", "Imported from -");
        let reference = "base:1".parse().unwrap();
        store.import_stream(&archive[..], &config, history, Some(&reference)).unwrap().id.to_string()
    }

    #[test]
    fn an_image_gets_a_layer_and_another_configuration() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("images")).unwrap();
        let config = json!({
            "Cmd": ["/bin/hello"], "Env": ["A=1", "B=2"], "Labels": {"a": "1"}, "User": "x",
            "Healthcheck": {"Test": ["NONE"]}, "OnBuild": ["RUN one"],
        });
        let parent = parent(&store, config);
        let changes = [
            json!({"Env": ["B=3", "C=4"], "Labels": {"b": "2"}, "Cmd": null, "Entrypoint": ["/bin/hello", "-x"]}),
            json!({"Env": ["C=5"], "User": "y", "ExposedPorts": {"80/tcp": {}}, "OnBuild": ["RUN two"]}),
        ];
        let commit = Commit {
            parent: &parent,
            changes: &changes,
            created: "2025-01-02T03:04:05Z",
            created_by: "sh -c true",
            author: Some("me"),
            comment: "why",
        };
        let layer = tar(&[("etc/new", b"new"), ("etc/.wh.old", b"")]);
        let reference = "derived:1".parse().unwrap();
        let loaded = store.commit(&layer[..], &commit, Some(&reference)).unwrap();
        let image = store.resolve("derived:1").unwrap().unwrap();
        assert_eq!((image.id, image.layers.len()), (loaded.id, 2));
        assert_eq!(image.layers[1].diff_id, Digest::of(&layer));
        let document: Value = serde_json::from_slice(&store.document(loaded.id).unwrap()).unwrap();
        assert_eq!(
            document["config"],
            json!({
                "Entrypoint": ["/bin/hello", "-x"], "Env": ["A=1", "B=3", "C=5"], "Labels": {"a": "1", "b": "2"},
                "User": "y", "ExposedPorts": {"80/tcp": {}}, "Healthcheck": {"Test": ["NONE"]},
                "OnBuild": ["RUN one", "RUN two"],
            })
        );
        assert_eq!(
            (&document["author"], &document["created"]),
            (&json!("me"), &json!("2025-01-02T03:04:05Z"))
        );
        let history = &image.history()[1];
        assert_eq!(
            (history.comment.as_deref(), history.created_by.as_deref()),
            (Some("why"), Some("sh -c true"))
        );
        store.disk(&image).unwrap();
        // The image that was changed is as it was.
        assert_eq!(store.resolve("base:1").unwrap().unwrap().layers.len(), 1);
    }

    #[test]
    fn the_last_step_is_that_of_the_new_layer() {
        let commit = Commit { comment: "why", ..Commit::default() };
        for (history, steps) in [
            (Value::Null, 3),
            (json!([]), 3),
            (json!([{"created_by": "COPY"}, {"empty_layer": true}]), 4),
            (json!([{"created_by": "COPY"}, {"created_by": "RUN"}]), 3),
        ] {
            let document = json!({"rootfs": {"diff_ids": ["one", "two"]}, "history": history});
            let document = committed(document, Digest::of(b""), &commit).unwrap();
            let told = document["history"].as_array().unwrap();
            assert_eq!((told.len(), &told.last().unwrap()["comment"]), (steps, &json!("why")), "{history}");
        }
    }

    #[test]
    fn a_container_that_has_changed_nothing_gives_an_empty_layer() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("images")).unwrap();
        let parent = parent(&store, json!({}));
        let commit = Commit { parent: &parent, created: "2025-01-02T03:04:05Z", ..Commit::default() };
        let loaded = store.commit(&[0; 1024][..], &commit, None).unwrap();
        let image = store.resolve(&loaded.id.to_string()).unwrap().unwrap();
        assert_eq!(image.layers.len(), 2);
        store.disk(&image).unwrap();
    }

    #[test]
    fn what_is_no_layer_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("images")).unwrap();
        let parent = parent(&store, json!({}));
        let commit = Commit { parent: &parent, created: "2025-01-02T03:04:05Z", ..Commit::default() };
        let refused = |layer: &[u8], commit: &Commit<'_>| store.commit(layer, commit, None).unwrap_err();
        assert!(matches!(refused(b"", &commit), ImportError::Empty));
        assert!(matches!(refused(b"not a tar archive", &commit), ImportError::Store(_)));
        let none = Commit { parent: "sha256:0000", ..commit };
        assert!(refused(&[0; 1024], &none).to_string().contains("there is no image"));
        assert_eq!(store.images().unwrap().len(), 1);
        assert_eq!(std::fs::read_dir(store.root().join("tmp")).unwrap().count(), 0);
    }
}
