//! Changing a file of credentials: all that is not of the registry in question stays.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value};

use super::{parts_of, read};
use crate::registry::RegistryError;

/// A file's content.
pub(super) struct Document {
    path: PathBuf,
    content: Map<String, Value>,
}

impl Document {
    /// The document at `path`; an empty one where there is none.
    pub(super) fn open(path: &Path) -> Result<Self, RegistryError> {
        // Where it is a link, what it leads to is replaced.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let content = match read(&path)? {
            Some(text) => serde_json::from_slice(&text).map_err(|error| RegistryError::CredentialsFile {
                path: path.clone(),
                reason: error.to_string(),
            })?,
            None => Map::new(),
        };
        Ok(Self { path, content })
    }

    /// Sets the entry of a server in `auths`.
    pub(super) fn set(&mut self, server: &str, entry: Value) -> Result<(), RegistryError> {
        self.remove(server)?;
        self.auths()?.insert(server.to_owned(), entry);
        Ok(())
    }

    /// Removes all entries of a server, but not of parts of it, and says whether there were some.
    pub(super) fn remove(&mut self, server: &str) -> Result<bool, RegistryError> {
        let auths = self.auths()?;
        let before = auths.len();
        auths.retain(|key, _| parts_of(key) != parts_of(server));
        Ok(auths.len() < before)
    }

    fn auths(&mut self) -> Result<&mut Map<String, Value>, RegistryError> {
        let path = self.path.clone();
        let auths = self.content.entry("auths").or_insert_with(|| Value::Object(Map::new()));
        let reason = "auths is not an object".to_owned();
        auths.as_object_mut().ok_or(RegistryError::CredentialsFile { path, reason })
    }

    /// Writes the file in one step, for its user only.
    pub(super) fn write(&self) -> Result<(), RegistryError> {
        self.try_write().map_err(|error| RegistryError::CredentialsFile {
            path: self.path.clone(),
            reason: format!("cannot write it: {error}"),
        })
    }

    fn try_write(&self) -> io::Result<()> {
        let directory = self.path.parent().filter(|path| !path.as_os_str().is_empty());
        let directory = directory.unwrap_or_else(|| Path::new("."));
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let mut text = Vec::new();
        let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
        let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
        self.content.serialize(&mut serializer)?;
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = directory.join(format!(".{name}.{}", std::process::id()));
        let mut options = OpenOptions::new();
        // One that is there was left by a killed process of the same ID.
        let _ = fs::remove_file(&temporary);
        let written =
            options.write(true).create_new(true).mode(0o600).open(&temporary).and_then(|mut file| {
                file.set_permissions(Permissions::from_mode(0o600))?;
                file.write_all(&text)?;
                file.sync_all()?;
                fs::rename(&temporary, &self.path)
            });
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }
}
