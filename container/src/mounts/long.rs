//! `--mount`: `KEY=VALUE,…`.

use std::str::FromStr;

use instance::VolumeDriver;
use vmm::MemorySize;

use super::short::{PRIVATE, PROPAGATED, host_path, is_path};
use super::tmpfs::Tmpfs;
use super::{MountError, MountOption, MountSource, VolumeMount, clean_subpath, clean_target, volume_size};

/// What `--mount` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LongMount(pub MountOption);

/// The most bytes of a list.
const MAX_LENGTH: usize = 64 << 10;

/// The fields of a list as those of a CSV file are: one in quotes may have commas in it, and two quotes for one.
fn fields(text: &str) -> Result<Vec<String>, MountError> {
    let invalid = || MountError::Quotes(text.chars().take(200).collect());
    if text.len() > MAX_LENGTH || text.contains(['\0', '\n', '\r']) {
        return Err(invalid());
    }
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let mut field = String::new();
        if let Some(quoted) = rest.strip_prefix('"') {
            rest = quoted;
            loop {
                let (part, behind) = rest.split_once('"').ok_or_else(invalid)?;
                field.push_str(part);
                rest = behind;
                let Some(behind) = rest.strip_prefix('"') else { break };
                field.push('"');
                rest = behind;
            }
            if !rest.is_empty() && !rest.starts_with(',') {
                return Err(invalid());
            }
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            let (part, behind) = rest.split_at(end);
            if part.contains('"') {
                return Err(invalid());
            }
            field.push_str(part);
            rest = behind;
        }
        fields.push(field);
        match rest.strip_prefix(',') {
            Some(behind) => rest = behind,
            None => return Ok(fields),
        }
    }
}

/// Which type of mount it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    Bind,
    #[default]
    Volume,
    Tmpfs,
}

/// What the fields say.
#[derive(Default)]
struct Said {
    kind: Kind,
    source: Option<String>,
    target: Option<String>,
    read_only: bool,
    is_empty: bool,
    subpath: Option<String>,
    driver: VolumeDriver,
    options: Vec<(String, String)>,
    labels: Vec<(String, String)>,
    /// `size=…` and `mode=…`
    tmpfs: Vec<String>,
    /// The last key that is for one type alone.
    of_bind: Option<String>,
    of_volume: Option<String>,
    of_tmpfs: Option<String>,
}

/// Reads what Go's `strconv.ParseBool` does.
fn flag(key: &'static str, value: &str) -> Result<bool, MountError> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(MountError::Value { key, value: value.to_owned(), expected: "true or false" }),
    }
}

fn pair(value: &str) -> (String, String) {
    let (name, value) = value.split_once('=').unwrap_or((value, ""));
    (name.to_owned(), value.to_owned())
}

impl Said {
    fn take(&mut self, field: &str) -> Result<(), MountError> {
        let invalid =
            |key, value: &str, expected| MountError::Value { key, value: value.to_owned(), expected };
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_ascii_lowercase(), value),
            None => match field.to_ascii_lowercase().as_str() {
                key @ ("readonly" | "ro" | "volume-nocopy" | "bind-nonrecursive") => (key.to_owned(), "true"),
                _ => return Err(MountError::Field(field.to_owned())),
            },
        };
        match key.split('-').next() {
            Some("bind") => self.of_bind = Some(key.clone()),
            Some("volume") => self.of_volume = Some(key.clone()),
            Some("tmpfs") => self.of_tmpfs = Some(key.clone()),
            _ => {}
        }
        let no_use = |why| Err(MountError::NoUse { key: key.clone(), why });
        match key.as_str() {
            "type" => {
                self.kind = match value.to_ascii_lowercase().as_str() {
                    "bind" => Kind::Bind,
                    "volume" => Kind::Volume,
                    "tmpfs" => Kind::Tmpfs,
                    _ => return Err(invalid("type", value, "bind, volume or tmpfs")),
                };
            }
            "source" | "src" => self.source = Some(value.to_owned()).filter(|source| !source.is_empty()),
            "target" | "dst" | "destination" => self.target = Some(value.to_owned()),
            "readonly" | "ro" => self.read_only = flag("readonly", value)?,
            "consistency" => {
                if !["", "consistent", "default", "cached", "delegated"].contains(&value) {
                    return Err(invalid("consistency", value, "consistent, cached or delegated"));
                }
            }
            "bind-propagation" => {
                if PROPAGATED.contains(&value) {
                    return Err(MountError::Propagation(value.to_owned()));
                }
                if !PRIVATE.contains(&value) {
                    return Err(invalid("bind-propagation", value, "rprivate or private"));
                }
            }
            "bind-nonrecursive" => {
                if flag("bind-nonrecursive", value)? {
                    return no_use("is not possible: a folder is shared with all that is mounted below it");
                }
            }
            "bind-recursive" => {
                if !["enabled", "readonly"].contains(&value) {
                    return no_use(
                        "takes enabled and readonly: a folder is shared with all that is mounted below it",
                    );
                }
            }
            "volume-nocopy" => self.is_empty = flag("volume-nocopy", value)?,
            "volume-driver" => {
                self.driver = match value {
                    "" | "local" => VolumeDriver::Local,
                    "shared" => VolumeDriver::Shared,
                    _ => return Err(invalid("volume-driver", value, "local or shared")),
                };
            }
            "volume-opt" => self.options.push(pair(value)),
            "volume-label" => self.labels.push(pair(value)),
            "volume-subpath" => self.subpath = clean_subpath(value)?,
            "tmpfs-size" => {
                let size: MemorySize =
                    value.parse().map_err(|_| invalid("tmpfs-size", value, "a size, as in 64m"))?;
                self.tmpfs.push(format!("size={}", size.bytes()));
            }
            "tmpfs-mode" => {
                let mode = u32::from_str_radix(value, 8).ok().filter(|mode| *mode <= 0o7777);
                let mode = mode.ok_or_else(|| invalid("tmpfs-mode", value, "an octal mode, as in 1777"))?;
                self.tmpfs.push(format!("mode={mode:o}"));
            }
            _ => return Err(MountError::Key(key)),
        }
        Ok(())
    }

    /// Refuses keys that are for another type.
    fn check(&self) -> Result<(), MountError> {
        let refuse = |key: &Option<String>, why| match key {
            Some(key) => Err(MountError::NoUse { key: key.clone(), why }),
            None => Ok(()),
        };
        if self.kind != Kind::Bind {
            refuse(&self.of_bind, "needs type=bind")?;
        }
        if self.kind != Kind::Volume {
            refuse(&self.of_volume, "needs type=volume")?;
        }
        if self.kind != Kind::Tmpfs {
            refuse(&self.of_tmpfs, "needs type=tmpfs")?;
        }
        Ok(())
    }

    fn source(&self) -> Result<MountSource, MountError> {
        Ok(match self.kind {
            Kind::Bind => {
                let path = self.source.as_ref().ok_or(MountError::NoSource)?;
                if !is_path(path) {
                    return Err(MountError::Source(path.clone()));
                }
                MountSource::Bind { path: host_path(path), is_made: false }
            }
            Kind::Volume => {
                volume_size(self.driver, self.options.iter().map(|(name, value)| (name, value)))?;
                MountSource::Volume(VolumeMount {
                    name: self.source.as_deref().map(str::parse).transpose()?,
                    is_anonymous: self.source.is_none(),
                    is_empty: self.is_empty,
                    subpath: self.subpath.clone(),
                    driver: self.driver,
                    options: self.options.clone(),
                    labels: self.labels.clone(),
                })
            }
            Kind::Tmpfs => {
                if self.source.is_some() {
                    return Err(MountError::NoUse {
                        key: "source".into(),
                        why: "is not for type=tmpfs, which has none",
                    });
                }
                let options = self.tmpfs.join(",");
                Tmpfs::read(&options)?;
                MountSource::Tmpfs(options)
            }
        })
    }
}

impl FromStr for LongMount {
    type Err = MountError;

    fn from_str(text: &str) -> Result<Self, MountError> {
        let mut said = Said::default();
        for field in fields(text)? {
            said.take(&field)?;
        }
        let target = said.target.clone().filter(|target| !target.is_empty()).ok_or(MountError::NoTarget)?;
        said.check()?;
        let source = said.source()?;
        Ok(Self(MountOption { target: clean_target(&target)?, read_only: said.read_only, source }))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn bind(path: &str, target: &str, read_only: bool) -> MountOption {
        let source = MountSource::Bind { path: host_path(path), is_made: false };
        MountOption { target: target.into(), read_only, source }
    }

    fn volume(target: &str, volume: VolumeMount) -> MountOption {
        MountOption { target: target.into(), read_only: false, source: MountSource::Volume(volume) }
    }

    fn named(name: &str) -> VolumeMount {
        VolumeMount { name: Some(name.parse().unwrap()), ..VolumeMount::default() }
    }

    fn tmpfs(options: &str) -> MountOption {
        MountOption { target: "/t".into(), read_only: false, source: MountSource::Tmpfs(options.into()) }
    }

    #[rstest]
    #[case("type=bind,source=/a,target=/b", bind("/a", "/b", false))]
    #[case("type=bind,src=./a,dst=/b,readonly", bind("./a", "/b", true))]
    #[case("TYPE=BIND,Src=/a,Destination=/b,ro=1", bind("/a", "/b", true))]
    #[case("type=bind,src=/a,dst=/b,readonly=false", bind("/a", "/b", false))]
    #[case("type=bind,src=/a,dst=/b,bind-propagation=rprivate,consistency=cached", bind("/a", "/b", false))]
    #[case("type=bind,src=/a,dst=/b,bind-nonrecursive=false,bind-recursive=enabled", bind("/a", "/b", false))]
    #[case("\"src=/a,b\",\"dst=/c\"\"d\",type=bind", bind("/a,b", "/c\"d", false))]
    #[case("type=volume,source=data,target=/b", volume("/b", named("data")))]
    #[case("src=data,dst=/b", volume("/b", named("data")))]
    #[case("dst=/b", volume("/b", VolumeMount { is_anonymous: true, ..VolumeMount::default() }))]
    #[case("src=data,dst=/b,volume-nocopy", volume("/b", VolumeMount { is_empty: true, ..named("data") }))]
    #[case("src=data,dst=/b,volume-nocopy=0", volume("/b", named("data")))]
    #[case(
        "src=data,dst=/b,volume-opt=size=1G,volume-label=a=b=c,volume-label=d",
        volume("/b", VolumeMount {
            options: vec![("size".into(), "1G".into())],
            labels: vec![("a".into(), "b=c".into()), ("d".into(), String::new())],
            ..named("data")
        })
    )]
    #[case("src=data,dst=/b,volume-driver=shared", volume("/b", VolumeMount { driver: VolumeDriver::Shared, ..named("data") }))]
    #[case("src=data,dst=/b,volume-subpath=x/./y", volume("/b", VolumeMount { subpath: Some("x/y".into()), ..named("data") }))]
    #[case("src=data,dst=/b,volume-subpath=.", volume("/b", named("data")))]
    #[case("type=tmpfs,dst=/t", tmpfs(""))]
    #[case("type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=0700", tmpfs("size=1048576,mode=700"))]
    fn all_of_dockers_forms_are_read(#[case] text: &str, #[case] expected: MountOption) {
        assert_eq!(text.parse(), Ok(LongMount(expected)));
    }

    #[rstest]
    #[case("", "invalid field \"\"")]
    #[case("type=bind,src=/a", "needs a target: add target=PATH")]
    #[case("type=bind,dst=/b", "needs a source: add source=HOSTPATH")]
    #[case("type=bind,src=,dst=/b", "needs a source")]
    #[case("type=bind,src=a,dst=/b", "invalid source \"a\"")]
    #[case("type=bind,src=/a,dst=b", "invalid mount target \"b\": begin it with /")]
    #[case("type=bind,src=/a,dst=/", "can't be the root")]
    #[case("type=bind,src=/a,dst=/b,readonly=maybe", "invalid value \"maybe\" of readonly")]
    #[case(
        "type=bind,src=/a,dst=/b,bind-propagation=rshared",
        "bind propagation \"rshared\" is not possible"
    )]
    #[case("type=bind,src=/a,dst=/b,bind-propagation=x", "invalid value \"x\" of bind-propagation")]
    #[case("type=bind,src=/a,dst=/b,bind-nonrecursive", "bind-nonrecursive is not possible")]
    #[case("type=bind,src=/a,dst=/b,volume-nocopy", "volume-nocopy needs type=volume")]
    #[case("type=bind,src=/a,dst=/b,tmpfs-size=1m", "tmpfs-size needs type=tmpfs")]
    #[case("src=data,dst=/b,bind-propagation=rprivate", "bind-propagation needs type=bind")]
    #[case("type=npipe,src=/a,dst=/b", "invalid value \"npipe\" of type")]
    #[case("type=bind,src=/a,dst=/b,z", "invalid field \"z\"")]
    #[case("type=bind,src=/a,dst=/b,relabel=shared", "unknown key \"relabel\"")]
    #[case("src=../x,dst=/b", "invalid volume name \"../x\"")]
    #[case("src=a/b,dst=/b", "invalid volume name \"a/b\"")]
    #[case("src=data,dst=/b,volume-driver=nfs", "invalid value \"nfs\" of volume-driver")]
    #[case("src=data,dst=/b,volume-opt=type=nfs", "invalid volume option \"type=nfs\"")]
    #[case("src=data,dst=/b,volume-subpath=/x", "invalid volume-subpath \"/x\"")]
    #[case("src=data,dst=/b,volume-subpath=x/../..", "invalid volume-subpath")]
    #[case("src=data,dst=/b,volume-subpath=", "invalid volume-subpath")]
    #[case("type=bind,src=/a,dst=/b,volume-subpath=x", "volume-subpath needs type=volume")]
    #[case("type=tmpfs,src=x,dst=/t", "source is not for type=tmpfs")]
    #[case("type=tmpfs,dst=/t,tmpfs-size=much", "invalid value \"much\" of tmpfs-size")]
    #[case("type=tmpfs,dst=/t,tmpfs-mode=9", "invalid value \"9\" of tmpfs-mode")]
    #[case("\"src=/a", "invalid mount")]
    #[case("src=\"a\",dst=/b", "invalid mount")]
    #[case("\"src=/a\"x,dst=/b", "invalid mount")]
    #[case("src=a\nb,dst=/b", "invalid mount")]
    fn others_are_refused(#[case] text: &str, #[case] says: &str) {
        let error = text.parse::<LongMount>().unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}
