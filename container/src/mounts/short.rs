//! `-v`: `HOSTPATH:PATH[:MODE]`, `NAME:PATH[:MODE]` or `PATH`.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::{MountError, MountOption, MountSource, VolumeMount, clean_target};

/// What `-v` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShortMount {
    /// What is mounted.
    pub mount: MountOption,
    /// The user wants it labelled for SELinux, which the VM does not have.
    pub is_labelled: bool,
}

/// Words behind the last colon.
#[derive(Default)]
struct Modes {
    read_only: Option<bool>,
    is_labelled: bool,
    is_empty: bool,
    has_propagation: bool,
}

/// Words that are taken and change nothing: on Linux they never did, or it is what there is anyway.
const CONSISTENCY: [&str; 3] = ["cached", "delegated", "consistent"];
pub(super) const PRIVATE: [&str; 2] = ["private", "rprivate"];
pub(super) const PROPAGATED: [&str; 4] = ["shared", "rshared", "slave", "rslave"];

/// Whether `text` could be a list of modes and nothing else, as a path in the container begins with a slash.
fn is_mode(text: &str) -> bool {
    !text.contains('/')
}

impl Modes {
    fn read(text: &str, volume: &str) -> Result<Self, MountError> {
        let invalid = |mode: &str| MountError::Mode { volume: volume.to_owned(), mode: mode.to_owned() };
        let mut modes = Self::default();
        for word in text.split(',') {
            let is_again = match word {
                "ro" => modes.read_only.replace(true).is_some(),
                "rw" => modes.read_only.replace(false).is_some(),
                "z" | "Z" => std::mem::replace(&mut modes.is_labelled, true),
                "nocopy" => std::mem::replace(&mut modes.is_empty, true),
                word if PRIVATE.contains(&word) => std::mem::replace(&mut modes.has_propagation, true),
                word if PROPAGATED.contains(&word) => return Err(MountError::Propagation(word.to_owned())),
                word if CONSISTENCY.contains(&word) => false,
                _ => true,
            };
            if is_again {
                return Err(invalid(word));
            }
        }
        Ok(modes)
    }
}

/// Whether docker takes `text` for a path of the host, and not for the name of a volume.
pub(super) fn is_path(text: &str) -> bool {
    text.starts_with('/') || text == "." || text == ".." || text.starts_with("./") || text.starts_with("../")
}

/// The path of the host that `text` means from here.
pub(super) fn host_path(text: &str) -> PathBuf {
    std::path::absolute(text).unwrap_or_else(|_| Path::new(text).to_owned())
}

impl FromStr for ShortMount {
    type Err = MountError;

    fn from_str(text: &str) -> Result<Self, MountError> {
        let invalid = || MountError::Short(text.to_owned());
        if text.is_empty() || text.contains('\0') {
            return Err(invalid());
        }
        let (rest, modes) = match text.rsplit_once(':') {
            // With a relative path in the last place, what is before it is not a path and a target.
            Some((rest, mode)) if is_mode(mode) && rest.contains('/') && !mode.is_empty() => {
                (rest, Modes::read(mode, text)?)
            }
            _ => (text, Modes::default()),
        };
        // The last colon: a path of the host may have some, the place in a container hardly.
        let (source, target) = match rest.rsplit_once(':') {
            Some((source, target)) if !source.is_empty() => (Some(source), target),
            Some(_) => return Err(invalid()),
            None => (None, rest),
        };
        if !target.starts_with('/') {
            return Err(invalid());
        }
        let target = clean_target(target)?;
        let refuse = |has: bool, mode: &str| match has {
            true => Err(MountError::Mode { volume: text.to_owned(), mode: mode.to_owned() }),
            false => Ok(()),
        };
        let source = match source {
            Some(path) if is_path(path) => {
                refuse(modes.is_empty, "nocopy")?;
                MountSource::Bind { path: host_path(path), is_made: true }
            }
            name => {
                refuse(modes.has_propagation, "private")?;
                MountSource::Volume(VolumeMount {
                    name: name.map(str::parse).transpose()?,
                    is_anonymous: name.is_none(),
                    is_empty: modes.is_empty,
                    ..VolumeMount::default()
                })
            }
        };
        let mount = MountOption { target, read_only: modes.read_only.unwrap_or_default(), source };
        Ok(Self { mount, is_labelled: modes.is_labelled })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn bind(path: &str, target: &str, read_only: bool) -> MountOption {
        let source = MountSource::Bind { path: host_path(path), is_made: true };
        MountOption { target: target.into(), read_only, source }
    }

    fn volume(name: Option<&str>, target: &str, read_only: bool, is_empty: bool) -> MountOption {
        let volume = VolumeMount {
            name: name.map(|name| name.parse().unwrap()),
            is_anonymous: name.is_none(),
            is_empty,
            ..VolumeMount::default()
        };
        MountOption { target: target.into(), read_only, source: MountSource::Volume(volume) }
    }

    #[rstest]
    #[case("/src:/work", bind("/src", "/work", false))]
    #[case("./src:/work:ro", bind("./src", "/work", true))]
    #[case(".:/work", bind(".", "/work", false))]
    #[case("..:/work", bind("..", "/work", false))]
    #[case("/a:b:/work:rw", bind("/a:b", "/work", false))]
    #[case("/a:/b/", bind("/a", "/b", false))]
    #[case("/a:/b:ro,rprivate", bind("/a", "/b", true))]
    #[case("/a:/b:cached", bind("/a", "/b", false))]
    #[case("/a:/b:delegated,ro", bind("/a", "/b", true))]
    #[case("/a.sock:/run/b.sock", bind("/a.sock", "/run/b.sock", false))]
    #[case("data:/work", volume(Some("data"), "/work", false, false))]
    #[case("data:/work:ro", volume(Some("data"), "/work", true, false))]
    #[case("data:/work:nocopy", volume(Some("data"), "/work", false, true))]
    #[case("data:/work:ro,nocopy", volume(Some("data"), "/work", true, true))]
    #[case("/work", volume(None, "/work", false, false))]
    #[case("/work:ro", volume(None, "/work", true, false))]
    fn all_of_dockers_forms_are_read(#[case] text: &str, #[case] expected: MountOption) {
        assert_eq!(text.parse(), Ok(ShortMount { mount: expected, is_labelled: false }));
    }

    #[rstest]
    #[case("/a:/b:z")]
    #[case("/a:/b:ro,Z")]
    #[case("data:/b:z")]
    fn labels_are_noted(#[case] text: &str) {
        assert!(text.parse::<ShortMount>().unwrap().is_labelled);
    }

    #[rstest]
    #[case("", "invalid volume \"\"")]
    #[case("src", "invalid volume")]
    #[case("/src:work", "invalid mode \"work\"")]
    #[case("data:work", "invalid volume")]
    #[case("data:work:ro", "invalid volume")]
    #[case(":/work", "invalid volume")]
    #[case("/a:", "invalid volume")]
    #[case("/a:/b:", "invalid volume")]
    #[case("/a:/b:x", "invalid mode \"x\"")]
    #[case("/a:/b:ro,rw", "invalid mode \"rw\"")]
    #[case("/a:/b:z,Z", "invalid mode \"Z\"")]
    #[case("/a:/b:ro,", "invalid mode \"\"")]
    #[case("/a:/b:nocopy", "invalid mode \"nocopy\"")]
    #[case("data:/b:private", "invalid mode \"private\"")]
    #[case("/a:/b:rshared", "bind propagation \"rshared\" is not possible")]
    #[case("/a:/b:ro,slave", "bind propagation \"slave\" is not possible")]
    #[case("/a:/", "can't be the root")]
    #[case("data:/x/..", "can't be the root")]
    #[case("../x/../y z:/work\0", "invalid volume")]
    #[case("a/b:/work", "invalid volume name \"a/b\"")]
    #[case("~/x:/work", "invalid volume name \"~/x\"")]
    #[case("-x:/work", "invalid volume name")]
    #[case("x:/work", "use 2 to 255 letters")]
    #[case(&format!("{}:/work", "n".repeat(300)), "use 2 to 255 letters")]
    fn others_are_refused(#[case] text: &str, #[case] says: &str) {
        let error = text.parse::<ShortMount>().unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}
