//! What a container needs of an image.

use vmm::Piece;

use crate::health::ImageHealth;

/// An image that is ready to be used.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// Its ID, as in `sha256:…`.
    pub id: String,
    /// What it says about its containers.
    pub config: ImageConfig,
    /// The files of its disk.
    pub disk: Vec<Piece>,
}

/// The part of an image's configuration that its containers start with (OCI image specification, "config").
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// What comes in front of the command.
    pub entrypoint: Vec<String>,
    /// The command, unless the user gives one.
    pub command: Vec<String>,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// The working directory.
    pub working_directory: String,
    /// The user, as in `www-data` or `33:33`.
    pub user: String,
    /// Ports that it listens on, as in `80/tcp`.
    pub exposed: Vec<String>,
    /// Paths for which its containers have volumes.
    pub volumes: Vec<String>,
    /// The signal that asks a container to end.
    pub stop_signal: Option<String>,
    /// How their health is checked.
    pub health: Option<ImageHealth>,
}
