//! Options of temporary file systems, which are docker's.

use super::MountError;

/// A temporary file system as mount(2) takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tmpfs {
    /// Flags.
    pub flags: u64,
    /// What only tmpfs understands, as in `size=64m,mode=1777`.
    pub data: String,
}

/// Words for flags: which one, and whether they set it.
const FLAGS: [(&str, u64, bool); 19] = [
    ("ro", libc::MS_RDONLY, true),
    ("rw", libc::MS_RDONLY, false),
    ("nosuid", libc::MS_NOSUID, true),
    ("suid", libc::MS_NOSUID, false),
    ("nodev", libc::MS_NODEV, true),
    ("dev", libc::MS_NODEV, false),
    ("noexec", libc::MS_NOEXEC, true),
    ("exec", libc::MS_NOEXEC, false),
    ("sync", libc::MS_SYNCHRONOUS, true),
    ("async", libc::MS_SYNCHRONOUS, false),
    ("dirsync", libc::MS_DIRSYNC, true),
    ("noatime", libc::MS_NOATIME, true),
    ("atime", libc::MS_NOATIME, false),
    ("nodiratime", libc::MS_NODIRATIME, true),
    ("diratime", libc::MS_NODIRATIME, false),
    ("relatime", libc::MS_RELATIME, true),
    ("norelatime", libc::MS_RELATIME, false),
    ("strictatime", libc::MS_STRICTATIME, true),
    ("nostrictatime", libc::MS_STRICTATIME, false),
];
/// Options with a value that docker passes on.
const VALUES: [&str; 7] = ["size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol"];
/// What docker begins with.
const DEFAULT: u64 = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
/// Words that change nothing: the mount is the container's own.
const OF_MOUNTS: [&str; 3] = ["rprivate", "private", "defaults"];

impl Tmpfs {
    /// Reads options as in `rw,exec,size=64m`. Later ones replace earlier ones.
    ///
    /// # Errors
    ///
    /// [`MountError::Tmpfs`].
    pub fn read(text: &str) -> Result<Self, MountError> {
        let mut flags = DEFAULT;
        let mut data: Vec<(&str, &str)> = Vec::new();
        for word in text.split(',').filter(|word| !word.is_empty()) {
            let invalid = || MountError::Tmpfs(word.to_owned());
            if let Some((_, flag, sets)) = FLAGS.iter().find(|(name, ..)| *name == word) {
                flags = if *sets { flags | flag } else { flags & !flag };
            } else if let Some((name, value)) = word.split_once('=') {
                let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"%:-.,".contains(&byte);
                if !VALUES.contains(&name) || value.is_empty() || !value.bytes().all(is_plain) {
                    return Err(invalid());
                }
                data.retain(|(known, _)| *known != name);
                data.push((name, value));
            } else if !OF_MOUNTS.contains(&word) {
                return Err(invalid());
            }
        }
        let data: Vec<_> = data.iter().map(|(name, value)| format!("{name}={value}")).collect();
        Ok(Self { flags, data: data.join(",") })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("", DEFAULT, "")]
    #[case("size=64k", DEFAULT, "size=64k")]
    #[case("rw,exec,size=1m", libc::MS_NOSUID | libc::MS_NODEV, "size=1m")]
    #[case("ro,suid,dev,exec", libc::MS_RDONLY, "")]
    #[case("exec,noexec", DEFAULT, "")]
    #[case("size=1m,mode=700,size=2m", DEFAULT, "mode=700,size=2m")]
    #[case(
        "uid=5,gid=6,nr_inodes=10,nr_blocks=4,size=50%",
        DEFAULT,
        "uid=5,gid=6,nr_inodes=10,nr_blocks=4,size=50%"
    )]
    #[case("noatime,sync", DEFAULT | libc::MS_NOATIME | libc::MS_SYNCHRONOUS, "")]
    fn options_are_dockers(#[case] text: &str, #[case] flags: u64, #[case] data: &str) {
        assert_eq!(Tmpfs::read(text), Ok(Tmpfs { flags, data: data.into() }));
    }

    #[rstest]
    #[case("size")]
    #[case("size=")]
    #[case("huge=always")]
    #[case("bogus")]
    #[case("mode=7 7")]
    #[case("size=1m\n")]
    #[case("lowerdir=/")]
    fn others_are_refused(#[case] text: &str) {
        let error = Tmpfs::read(text).unwrap_err().to_string();
        assert!(error.contains("invalid tmpfs option"), "{error}");
    }
}
