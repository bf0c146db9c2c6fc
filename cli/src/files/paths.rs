//! Paths of `mvm cp`, as docker understands them: where a copy goes and what it is called there.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// How many links a path's last part may lead through.
const MAX_LINKS: u32 = 10;

/// An argument: a path of this host, or one of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Argument {
    /// Standard input or output.
    Standard,
    /// A path of this host.
    Host(Vec<u8>),
    /// A path of a container.
    Container(String, Vec<u8>),
}

impl Argument {
    /// Reads an argument. What begins with `/` or `.` is a path of this host, whatever colons it has.
    pub fn of(text: &OsStr) -> Self {
        let bytes = text.as_bytes();
        if bytes == b"-" {
            return Self::Standard;
        }
        let host = || Self::Host(bytes.to_vec());
        if bytes.starts_with(b"/") || bytes.starts_with(b".") {
            return host();
        }
        let colon = bytes.iter().position(|byte| *byte == b':');
        let name = colon.and_then(|colon| std::str::from_utf8(bytes.get(..colon)?).ok());
        match (name, colon) {
            (Some(name), Some(colon)) => {
                let path = bytes.get(colon.saturating_add(1)..).unwrap_or_default();
                Self::Container(name.to_owned(), path.to_vec())
            }
            _ => host(),
        }
    }
}

/// The path in its shortest form, as it is without looking at any file: `.` where nothing is left.
pub fn clean(path: &[u8]) -> Vec<u8> {
    let is_absolute = path.starts_with(b"/");
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." if parts.last().is_some_and(|last| *last != b"..") => drop(parts.pop()),
            b".." if is_absolute => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join(&b'/');
    match (is_absolute, joined.is_empty()) {
        (true, _) => [&b"/"[..], &joined].concat(),
        (false, true) => b".".to_vec(),
        (false, false) => joined,
    }
}

/// Whether the path means what is in a directory, and not the directory: it ends with `.`.
fn means_content(path: &[u8]) -> bool {
    path == b"." || path.ends_with(b"/.")
}

/// Whether the path says that it is that of a directory.
pub fn says_directory(path: &[u8]) -> bool {
    path.ends_with(b"/") || means_content(path)
}

/// The directory of a path in its shortest form, and the name in it.
pub fn split(path: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let path = clean(path);
    let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
        Some(0) => (&b"/"[..], path.get(1..).unwrap_or_default()),
        Some(slash) => {
            (path.get(..slash).unwrap_or_default(), path.get(slash.saturating_add(1)..).unwrap_or_default())
        }
        None => (&b"."[..], &path[..]),
    };
    (parent.to_vec(), name.to_vec())
}

/// The path of a container, from its root, with the slash or dot at its end.
pub fn in_container(path: &[u8]) -> Vec<u8> {
    let mut absolute = clean(&[b"/", path].concat());
    let end = if means_content(path) { &b"/."[..] } else { b"/" };
    if says_directory(path) && absolute != b"/" {
        absolute.extend_from_slice(end);
    }
    absolute
}

/// What a source is called in the copy: its name, or `.` where its content is meant.
pub fn name_of(path: &[u8]) -> Vec<u8> {
    let (_, name) = split(path);
    let has_name = !means_content(path) && !matches!(&name[..], b"" | b"." | b"..");
    if has_name { name } else { b".".to_vec() }
}

/// Where a copy goes to, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The path, of which the last part is no link.
    pub path: Vec<u8>,
    /// What is there.
    pub found: Found,
}

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// A directory.
    Directory,
    /// Anything else.
    File,
}

/// The directory that a copy is unpacked in, and what it is called there; `name` is what the source is called.
///
/// # Errors
///
/// Why it can't be copied there.
pub fn plan(name: &[u8], is_directory: bool, target: &Target) -> Result<(Vec<u8>, Vec<u8>), &'static str> {
    match target.found {
        Found::Directory => Ok((target.path.clone(), name.to_vec())),
        Found::File if is_directory => Err("cannot copy a directory to what is not one"),
        Found::Nothing if !is_directory && says_directory(&target.path) => Err("no such directory"),
        Found::File | Found::Nothing => Ok(split(&target.path)),
    }
}

/// A file of this host that is copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSource {
    /// The directory in which it is, and its name there.
    pub parent: PathBuf,
    /// Its name, or `.` where it is a directory.
    pub entry: OsString,
    /// What it is called.
    pub name: Vec<u8>,
    /// Whether it is a directory.
    pub is_directory: bool,
}

/// What is at `path` of this host; a link at its end is followed if it `follows`.
///
/// # Errors
///
/// Those of looking at it.
pub fn host_source(path: &[u8], follows: bool) -> std::io::Result<HostSource> {
    let given = Path::new(OsStr::from_bytes(path));
    let name = match name_of(path) {
        // `..` is called what it is.
        name if name == b"." && !means_content(path) => {
            let real = fs::canonicalize(given)?;
            real.file_name().map_or(name, |name| name.as_bytes().to_vec())
        }
        name => name,
    };
    let real = if follows { fs::canonicalize(given)? } else { given.to_owned() };
    // A slash at the end follows a link, as with lstat(2).
    let is_directory = fs::symlink_metadata(&real)?.is_dir();
    if is_directory {
        return Ok(HostSource { parent: real, entry: ".".into(), name, is_directory });
    }
    let (parent, entry) = split(real.as_os_str().as_bytes());
    let parent = PathBuf::from(OsString::from_vec(parent));
    Ok(HostSource { parent, entry: OsString::from_vec(entry), name, is_directory })
}

/// What is at `path` of this host, which a copy goes to: a link at its end is followed, whether something is there or
/// not.
///
/// # Errors
///
/// Why nothing can be copied there.
pub fn host_target(path: &[u8]) -> Result<Target, String> {
    let shown = |path: &Path| path.display().to_string();
    let given = PathBuf::from(OsStr::from_bytes(path));
    let mut here = given.clone();
    for _ in 0..=MAX_LINKS {
        let data = match fs::symlink_metadata(&here) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let (parent, _) = split(here.as_os_str().as_bytes());
                let parent = PathBuf::from(OsString::from_vec(parent));
                return match fs::metadata(&parent) {
                    Ok(data) if data.is_dir() => {
                        Ok(Target { path: here.into_os_string().into_vec(), found: Found::Nothing })
                    }
                    Ok(_) => Err(format!("{}: it is not a directory", shown(&parent))),
                    Err(_) => Err(format!("the directory {} does not exist", shown(&parent))),
                };
            }
            data => data.map_err(|error| format!("{}: {error}", shown(&here)))?,
        };
        if !data.is_symlink() {
            let found = if data.is_dir() { Found::Directory } else { Found::File };
            if found == Found::File && !data.is_file() {
                return Err(format!("{}: it is neither a directory nor a regular file", shown(&here)));
            }
            return Ok(Target { path: here.into_os_string().into_vec(), found });
        }
        let link = fs::read_link(&here).map_err(|error| format!("{}: {error}", shown(&here)))?;
        here = here.parent().unwrap_or(Path::new("/")).join(link);
    }
    Err(format!("{}: too many levels of symbolic links", shown(&given)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("-", Argument::Standard)]
    #[case("web:/etc", Argument::Container("web".into(), b"/etc".to_vec()))]
    #[case("web:a:b", Argument::Container("web".into(), b"a:b".to_vec()))]
    #[case("web:", Argument::Container("web".into(), b"".to_vec()))]
    #[case("./web:/etc", Argument::Host(b"./web:/etc".to_vec()))]
    #[case("/a:b", Argument::Host(b"/a:b".to_vec()))]
    #[case(".x:y", Argument::Host(b".x:y".to_vec()))]
    #[case("file", Argument::Host(b"file".to_vec()))]
    fn arguments_are_dockers(#[case] text: &str, #[case] expected: Argument) {
        assert_eq!(Argument::of(OsStr::new(text)), expected);
    }

    #[rstest]
    #[case("", ".")]
    #[case("/", "/")]
    #[case("a//b/./c/", "a/b/c")]
    #[case("/a/../..", "/")]
    #[case("a/../../b", "../b")]
    #[case("..", "..")]
    #[case("./", ".")]
    fn paths_are_shortened(#[case] path: &str, #[case] expected: &str) {
        assert_eq!(String::from_utf8(clean(path.as_bytes())).unwrap(), expected);
    }

    #[rstest]
    #[case("etc/passwd", "/etc/passwd")]
    #[case("/etc/", "/etc/")]
    #[case("/etc/.", "/etc/.")]
    #[case(".", "/")]
    #[case("../x", "/x")]
    #[case("/", "/")]
    fn paths_of_containers_begin_at_their_root(#[case] path: &str, #[case] expected: &str) {
        assert_eq!(String::from_utf8(in_container(path.as_bytes())).unwrap(), expected);
    }

    #[rstest]
    #[case("/etc/passwd", "passwd")]
    #[case("dir/", "dir")]
    #[case("dir/.", ".")]
    #[case(".", ".")]
    #[case("/", ".")]
    #[case("a/..", ".")]
    fn a_source_has_a_name(#[case] path: &str, #[case] expected: &str) {
        assert_eq!(String::from_utf8(name_of(path.as_bytes())).unwrap(), expected);
    }

    /// The table of docker's documentation of `docker cp`.
    #[rstest]
    #[case::file_to_nothing("file", false, "/to/new", Found::Nothing, Ok(("/to", "new")))]
    #[case::file_to_no_directory("file", false, "/to/new/", Found::Nothing, Err("no such directory"))]
    #[case::file_over_a_file("file", false, "/to/old", Found::File, Ok(("/to", "old")))]
    #[case::file_into_a_directory("file", false, "/to", Found::Directory, Ok(("/to", "file")))]
    #[case::directory_to_nothing("dir", true, "/to/new", Found::Nothing, Ok(("/to", "new")))]
    #[case::directory_to_nothing_with_a_slash("dir", true, "/to/new/", Found::Nothing, Ok(("/to", "new")))]
    #[case::directory_over_a_file(
        "dir",
        true,
        "/to/old",
        Found::File,
        Err("cannot copy a directory to what is not one")
    )]
    #[case::directory_into_a_directory("dir", true, "/to/", Found::Directory, Ok(("/to/", "dir")))]
    #[case::content_into_a_directory(".", true, "/to", Found::Directory, Ok(("/to", ".")))]
    #[case::content_to_nothing(".", true, "new", Found::Nothing, Ok((".", "new")))]
    fn a_copy_goes_where_docker_puts_it(
        #[case] name: &str,
        #[case] is_directory: bool,
        #[case] path: &str,
        #[case] found: Found,
        #[case] expected: Result<(&str, &str), &'static str>,
    ) {
        let target = Target { path: path.into(), found };
        let planned = plan(name.as_bytes(), is_directory, &target);
        let expected = expected.map(|(directory, name)| (directory.into(), name.into()));
        assert_eq!(planned, expected);
    }

    #[test]
    fn links_of_this_host_are_followed_where_docker_follows_them() {
        let top = tempfile::tempdir().unwrap();
        let path = |name: &str| top.path().join(name).into_os_string().into_vec();
        fs::create_dir(top.path().join("dir")).unwrap();
        fs::write(top.path().join("file"), "").unwrap();
        for (link, target) in
            [("to-dir", "dir"), ("to-file", "file"), ("broken", "nothing"), ("loop", "loop")]
        {
            symlink(target, top.path().join(link)).unwrap();
        }
        let source = |name: &str, follows| host_source(&path(name), follows).unwrap();
        assert!(!source("to-dir", false).is_directory && source("to-dir", false).entry == "to-dir");
        assert!(source("to-dir/", false).is_directory && source("to-dir/", false).name == b"to-dir");
        assert!(source("to-dir", true).is_directory && source("to-dir", true).name == b"to-dir");
        let followed = source("to-file", true);
        assert_eq!((followed.entry, followed.name), ("file".into(), b"to-file".to_vec()));
        assert_eq!(source("dir/..", false).name, top.path().file_name().unwrap().as_bytes());
        assert!(host_source(&path("broken"), true).is_err() && host_source(&path("file/"), false).is_err());
        let target = |name: &str| host_target(&path(name));
        assert_eq!(target("to-dir").unwrap(), Target { path: path("dir"), found: Found::Directory });
        assert_eq!(target("to-file").unwrap(), Target { path: path("file"), found: Found::File });
        assert_eq!(target("broken").unwrap(), Target { path: path("nothing"), found: Found::Nothing });
        assert!(target("loop").unwrap_err().contains("too many levels"));
        assert!(target("none/x").unwrap_err().contains("does not exist"));
        assert!(target("file/x").unwrap_err().contains("ot a directory"));
    }
}
