//! The platform that images are for, and the one of an index's manifests that is for it.

use oci_spec::image::{Arch, ImageConfiguration, Os, Platform};

/// Whether an index's entry is for this platform. One that does not say is.
pub(crate) fn is_ours(platform: Option<&Platform>) -> bool {
    platform.is_none_or(|platform| *platform.os() == Os::Linux && *platform.architecture() == Arch::Amd64)
}

/// How well an entry for this platform fits: less is better. A variant (`v2`, `v3`) asks for more than every processor
/// has.
pub(crate) fn rank(platform: Option<&Platform>) -> u8 {
    match platform {
        None => 2,
        Some(platform) => u8::from(!matches!(platform.variant().as_deref(), None | Some("" | "v1"))),
    }
}

/// `os/architecture` of an entry.
pub(crate) fn name(platform: Option<&Platform>) -> String {
    let Some(platform) = platform else { return "unknown".to_owned() };
    let variant = platform.variant().as_deref().map(|variant| format!("/{variant}")).unwrap_or_default();
    format!("{}/{}{variant}", platform.os(), platform.architecture())
}

/// What an image is for, if it is not this platform.
pub(crate) fn other(config: &ImageConfiguration) -> Option<String> {
    let is_ours = *config.os() == Os::Linux && *config.architecture() == Arch::Amd64;
    (!is_ours).then(|| format!("{}/{}", config.os(), config.architecture()))
}
