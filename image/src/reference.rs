//! References to images, as docker reads them.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::digest::Digest;

/// The registry of references that name none.
const DEFAULT_REGISTRY: &str = "docker.io";
/// The tag of references that have neither a tag nor a digest.
const DEFAULT_TAG: &str = "latest";
/// Where the default registry has the images whose names have one part.
const OFFICIAL: &str = "library/";
/// The most bytes of a repository's name with its registry.
const MAX_NAME: usize = 255;
/// The most bytes of a tag.
const MAX_TAG: usize = 128;

/// Why a text is not a reference.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ReferenceError {
    /// Nothing there.
    #[error("the image's name is empty: use NAME[:TAG] or NAME@sha256:DIGEST")]
    Empty,
    /// Upper case where only lower case is allowed.
    #[error("invalid image name {0:?}: use lower case")]
    UpperCase(String),
    /// A name that is not one.
    #[error(
        "invalid image name {0:?}: use [HOST[:PORT]/]NAME, of a-z and 0-9 with single '.', '_', '-' or '/' between"
    )]
    Name(String),
    /// A registry that is not a host name or address.
    #[error("invalid registry {0:?}: use HOST[:PORT]")]
    Registry(String),
    /// A tag that is not one.
    #[error("invalid tag {0:?}: use up to 128 of a-z, A-Z, 0-9, '_', '.' and '-', neither '.' nor '-' first")]
    Tag(String),
    /// A digest that is not one.
    #[error("invalid digest {0:?}: use sha256: and 64 hexadecimal digits in lower case")]
    Digest(String),
    /// An image's ID.
    #[error("{0:?} is an image's ID, which can't be the name of an image")]
    Id(String),
    /// Too long.
    #[error("the image's name has {0} bytes: use up to {MAX_NAME}")]
    TooLong(usize),
}

/// The name of an image in a registry: a repository there, and in it a tag, a digest, or both.
///
/// [`fmt::Display`] writes it as users do (`debian:12`), [`Reference::canonical`] with all that is implied
/// (`docker.io/library/debian:12`). Either is read as the same reference.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry's host, with a port where one is given. `docker.io` stands for Docker Hub.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository's name at its registry, as `library/debian`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag. There is one, or a digest, or both.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, which goes before the tag.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The registry and repository, as `docker.io/library/debian`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The whole reference, as `docker.io/library/debian:12`.
    pub fn canonical(&self) -> String {
        self.name() + &self.suffix()
    }

    /// The same repository's image of this digest.
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// The tag and digest with what separates them from the name.
    fn suffix(&self) -> String {
        let tag = self.tag.iter().map(|tag| format!(":{tag}"));
        let digest = self.digest.iter().map(|digest| format!("@{digest}"));
        tag.chain(digest).collect()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let official = self.repository.strip_prefix(OFFICIAL).filter(|name| !name.contains('/'));
        let short = official.unwrap_or(&self.repository);
        // A name that looks like one with a registry, or like an ID, needs its registry.
        let is_clear =
            split_registry(short) == (DEFAULT_REGISTRY, short) && Digest::from_hex(short).is_none();
        if self.registry == DEFAULT_REGISTRY && is_clear {
            f.write_str(short)?;
        } else {
            f.write_str(&self.name())?;
        }
        f.write_str(&self.suffix())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let shown = || text.chars().take(80).collect::<String>();
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if Digest::from_hex(text).is_some() {
            return Err(ReferenceError::Id(shown()));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let invalid = |_| ReferenceError::Digest(digest.chars().take(80).collect());
                (rest, Some(digest.parse().map_err(invalid)?))
            }
            None => (text, None),
        };
        let last_part = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest.get(last_part..).and_then(|last| last.find(':')) {
            Some(colon) => {
                let (name, tag) = rest.split_at(last_part + colon);
                (name, Some(tag.get(1..).unwrap_or_default()))
            }
            None => (rest, None),
        };
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return Err(ReferenceError::Tag(tag.chars().take(80).collect()));
        }
        let (registry, repository) = split_registry(name);
        if !is_registry(registry) {
            return Err(ReferenceError::Registry(registry.chars().take(80).collect()));
        }
        let is_official = registry == DEFAULT_REGISTRY && !repository.contains('/');
        let repository = if is_official { format!("{OFFICIAL}{repository}") } else { repository.to_owned() };
        if !repository.split('/').all(is_name_part) {
            let is_upper = repository.to_ascii_lowercase().split('/').all(is_name_part);
            let error = if is_upper { ReferenceError::UpperCase } else { ReferenceError::Name };
            return Err(error(shown()));
        }
        let length = registry.len() + 1 + repository.len();
        if length > MAX_NAME {
            return Err(ReferenceError::TooLong(length));
        }
        let default = digest.is_none().then_some(DEFAULT_TAG);
        let tag = tag.or(default).map(str::to_owned);
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }
}

/// The registry of a name and the rest. What comes before the first slash is a registry where it could not be a part
/// of a name on Docker Hub.
fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some(("index.docker.io", rest)) => (DEFAULT_REGISTRY, rest),
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|byte| byte.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_REGISTRY, name),
    }
}

/// Whether this is a host and perhaps a port.
fn is_registry(text: &str) -> bool {
    let is_port = |port: &str| {
        !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
    };
    if let Some(rest) = text.strip_prefix('[') {
        let Some((address, after)) = rest.split_once(']') else { return false };
        let is_address = address.parse::<std::net::Ipv6Addr>().is_ok();
        return is_address && (after.is_empty() || after.strip_prefix(':').is_some_and(is_port));
    }
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let is_label = |label: &str| {
        let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        label.bytes().all(is_inner) && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
    };
    host.split('.').all(is_label) && port.is_none_or(is_port)
}

/// Whether this can be between two slashes: runs of a-z and 0-9 with one '.', one or two '_', or some '-' between.
fn is_name_part(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut separators = text.split(|char: char| u8::try_from(char).is_ok_and(is_plain));
    // Between two plain characters there is an empty text; before the first and behind the last one as well.
    let is_separator =
        |text: &str| matches!(text, "" | "." | "_" | "__") || text.bytes().all(|byte| byte == b'-');
    let has_ends = text.bytes().next().is_some_and(is_plain) && text.bytes().last().is_some_and(is_plain);
    has_ends && separators.all(is_separator)
}

fn is_tag(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let is_inner = |byte: u8| is_word(byte) || matches!(byte, b'.' | b'-');
    text.len() <= MAX_TAG && text.bytes().next().is_some_and(is_word) && text.bytes().all(is_inner)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[rstest]
    #[case("debian", "docker.io/library/debian:latest", "debian:latest")]
    #[case("debian:12", "docker.io/library/debian:12", "debian:12")]
    #[case("library/debian", "docker.io/library/debian:latest", "debian:latest")]
    #[case("docker.io/debian:12", "docker.io/library/debian:12", "debian:12")]
    #[case("index.docker.io/library/debian:12", "docker.io/library/debian:12", "debian:12")]
    #[case("grafana/grafana", "docker.io/grafana/grafana:latest", "grafana/grafana:latest")]
    #[case("localhost/a", "localhost/a:latest", "localhost/a:latest")]
    #[case("localhost:5000/a:b", "localhost:5000/a:b", "localhost:5000/a:b")]
    #[case("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest", "127.0.0.1:5000/a/b/c:latest")]
    #[case("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a:latest")]
    #[case("[2001:db8::1]/a", "[2001:db8::1]/a:latest", "[2001:db8::1]/a:latest")]
    #[case("Registry/a", "Registry/a:latest", "Registry/a:latest")]
    #[case(
        "quay.io/a/b_c__d---e.f:V1.0-rc_1",
        "quay.io/a/b_c__d---e.f:V1.0-rc_1",
        "quay.io/a/b_c__d---e.f:V1.0-rc_1"
    )]
    // One part is a name, whatever it looks like.
    #[case("a.b", "docker.io/library/a.b:latest", "a.b:latest")]
    #[case("localhost", "docker.io/library/localhost:latest", "localhost:latest")]
    #[case("docker.io/localhost/a", "docker.io/localhost/a:latest", "docker.io/localhost/a:latest")]
    #[case("a:5000", "docker.io/library/a:5000", "a:5000")]
    #[case("docker.io/docker.io/a", "docker.io/docker.io/a:latest", "docker.io/docker.io/a:latest")]
    #[case(
        "docker.io/index.docker.io/a/b",
        "docker.io/index.docker.io/a/b:latest",
        "docker.io/index.docker.io/a/b:latest"
    )]
    fn references_are_read_as_docker_does(
        #[case] text: &str,
        #[case] canonical: &str,
        #[case] familiar: &str,
    ) {
        let reference: Reference = text.parse().unwrap();
        assert_eq!(reference.canonical(), canonical);
        assert_eq!(reference.to_string(), familiar);
    }

    #[test]
    fn a_digest_needs_no_tag_and_may_have_one() {
        let reference: Reference = format!("debian@sha256:{HEX}").parse().unwrap();
        assert_eq!((reference.tag(), reference.digest().unwrap().hex().as_str()), (None, HEX));
        let reference: Reference = format!("debian:12@sha256:{HEX}").parse().unwrap();
        assert_eq!(reference.tag(), Some("12"));
        assert_eq!(reference.to_string(), format!("debian:12@sha256:{HEX}"));
    }

    #[rstest]
    #[case::empty("")]
    #[case::no_name(":tag")]
    #[case::no_name_but_digest("@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")]
    #[case::no_tag("debian:")]
    #[case::two_tags("debian:a:b")]
    #[case::upper("Debian")]
    #[case::upper_path("quay.io/Debian")]
    #[case::slash_first("/debian")]
    #[case::slash_last("debian/")]
    #[case::two_slashes("a//b")]
    #[case::dots("../../etc/passwd")]
    #[case::two_dots("a/b..c")]
    #[case::underscores("a___b")]
    #[case::dash_first("-a")]
    #[case::dash_last("a-")]
    #[case::space("a b")]
    #[case::newline("a\n")]
    #[case::zero("a\0")]
    #[case::wide("dëbian")]
    #[case::wide_tag("debian:ß")]
    #[case::tag_dot("debian:.a")]
    #[case::tag_dash("debian:-a")]
    #[case::scheme("https://quay.io/a")]
    #[case::port("quay.io:x/a")]
    #[case::large_port("quay.io:65536/a")]
    #[case::no_port("quay.io:/a")]
    #[case::label("quay..io/a")]
    #[case::label_dash("-quay.io/a")]
    #[case::address("[::x]/a")]
    #[case::unclosed("[::1/a")]
    #[case::short_digest("a@sha256:e3b0")]
    #[case::other_digest("a@md5:d41d8cd98f00b204e9800998ecf8427e")]
    #[case::id(HEX)]
    #[case::option("--help")]
    fn what_docker_refuses_is_refused(#[case] text: &str) {
        let error = text.parse::<Reference>().unwrap_err();
        assert!(error.to_string().len() < 300, "{error}");
    }

    #[test]
    fn lengths_are_bounded() {
        let tag = |length: usize| format!("a:{}", "t".repeat(length)).parse::<Reference>();
        assert!(tag(128).is_ok());
        assert!(matches!(tag(129), Err(ReferenceError::Tag(_))));
        let name = |length: usize| format!("quay.io/{}", "n".repeat(length - 8)).parse::<Reference>();
        assert!(name(255).is_ok());
        assert_eq!(name(256), Err(ReferenceError::TooLong(256)));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,300}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert!(!reference.repository().split('/').any(|part| part == ".." || part.is_empty()));
                prop_assert_eq!(&reference.canonical().parse::<Reference>().unwrap(), &reference);
            }
        }

        #[test]
        fn both_forms_are_read_as_the_same(
            registry in "(|localhost/|[a-z]{1,9}\\.[a-z]{2,3}/|127\\.0\\.0\\.1:[1-9][0-9]{0,3}/|\\[::1\\]/)",
            path in "[a-z0-9]{1,9}((\\.|_|__|-{1,3})[a-z0-9]{1,9}){0,2}(/[a-z0-9]{1,9}){0,3}",
            tag in "(|:[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,20})",
            digest in "(|@sha256:[0-9a-f]{64})",
        ) {
            let text = format!("{registry}{path}{tag}{digest}");
            let is_registry = registry.is_empty() && split_registry(&path).0 != DEFAULT_REGISTRY;
            prop_assume!(Digest::from_hex(&text).is_none() && !is_registry);
            let reference: Reference = text.parse().unwrap();
            prop_assert_eq!(&reference.canonical().parse::<Reference>().unwrap(), &reference);
            prop_assert_eq!(&reference.to_string().parse::<Reference>().unwrap(), &reference);
        }
    }
}
