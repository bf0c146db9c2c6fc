//! The values of flags and configuration files that need a parser of their own, and how a TOML file gives them.
//!
//! Each error is a phrase that says what to write instead.

use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::str::FromStr;

use serde::de::{self, Deserializer, SeqAccess, Visitor};

/// Reads a mode of confinement.
pub fn jail_mode(text: &str) -> Result<jail::Mode, String> {
    text.parse()
}

/// Reads a number of CPUs.
pub fn cpus(text: &str) -> Result<u32, String> {
    let error = || format!("invalid CPU count {text:?}: use 1 to {}", vmm::MAX_CPUS);
    text.parse().ok().filter(|count| (1..=vmm::MAX_CPUS).contains(count)).ok_or_else(error)
}

/// The least limit of a container's memory, which is docker's.
const MIN_MEMORY: u64 = 6 << 20;

/// Refuses a limit of memory below docker's least.
pub fn check_memory(memory: Option<u64>) -> Result<(), String> {
    match memory.filter(|bytes| *bytes < MIN_MEMORY) {
        Some(bytes) => {
            Err(format!("invalid --memory of {bytes} bytes: use 6m or more, with a unit as in 512m or 2g"))
        }
        None => Ok(()),
    }
}

/// The seconds of a wait without a limit.
pub const NO_LIMIT: u64 = u64::MAX;

/// Reads a number of seconds, at most a year; -1, or another number below 0 as docker, is no limit.
pub fn seconds(text: &str) -> Result<u64, String> {
    const MOST: u64 = 365 * 24 * 3600;
    let digits = text.strip_suffix('s').unwrap_or(text);
    if digits.parse::<i64>().is_ok_and(|seconds| seconds < 0) {
        return Ok(NO_LIMIT);
    }
    let seconds = digits.parse().ok().filter(|seconds| *seconds <= MOST);
    seconds.ok_or_else(|| {
        format!("invalid time {text:?}: use a number of seconds, as in 30, or -1 for no limit")
    })
}

/// Accepts a number; says so where it is in quotes.
pub fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    struct Number;
    impl Visitor<'_> for Number {
        type Value = u32;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a number, without quotes")
        }

        fn visit_i64<E: de::Error>(self, value: i64) -> Result<u32, E> {
            self.visit_i128(value.into())
        }

        // JSON's.
        fn visit_u64<E: de::Error>(self, value: u64) -> Result<u32, E> {
            self.visit_i128(value.into())
        }

        fn visit_i128<E: de::Error>(self, value: i128) -> Result<u32, E> {
            let error = || E::custom(format!("invalid CPU count {value}: use 1 to {}", vmm::MAX_CPUS));
            u32::try_from(value).ok().filter(|count| (1..=vmm::MAX_CPUS).contains(count)).ok_or_else(error)
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<u32, E> {
            Err(E::custom(if text.parse::<u32>().is_ok() {
                format!("write {text} without quotes")
            } else {
                format!("invalid number {text:?}: use digits, without quotes")
            }))
        }
    }
    deserializer.deserialize_any(Number).map(Some)
}

/// Accepts true or false; says so where they are in quotes.
pub fn switch<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    struct Switch;
    impl Visitor<'_> for Switch {
        type Value = bool;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("true or false, without quotes")
        }

        fn visit_bool<E: de::Error>(self, value: bool) -> Result<bool, E> {
            Ok(value)
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<bool, E> {
            Err(E::custom(format!("invalid value {text:?}: write true or false, without quotes")))
        }
    }
    deserializer.deserialize_any(Switch)
}

/// Accepts text, in the form that the flag takes.
pub fn text<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    deserializer.deserialize_any(Text(PhantomData)).map(Some)
}

/// Accepts the path of a file.
pub fn path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    let path = text::<D, PathBuf>(deserializer)?;
    // Put behind the configuration's directory, it would be that directory.
    let is_empty = path.as_ref().is_some_and(|path| path.as_os_str().is_empty());
    if is_empty { Err(de::Error::custom("no path: write that of a file")) } else { Ok(path) }
}

/// Accepts a list of texts, each in the form that the flag takes, or one alone.
pub fn list<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    deserializer.deserialize_any(List(PhantomData))
}

struct Text<T>(PhantomData<T>);

impl<T: FromStr<Err: fmt::Display>> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text in quotes")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<T, E> {
        Err(E::custom(format!("write it in quotes, \"{value}\"")))
    }
}

impl<'de, T: FromStr<Err: fmt::Display>> de::DeserializeSeed<'de> for Text<T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_any(self)
    }
}

struct List<T>(PhantomData<T>);

impl<'de, T: FromStr<Err: fmt::Display>> Visitor<'de> for List<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of texts in quotes, or one alone")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<T>, E> {
        Text(PhantomData).visit_str(text).map(|value| vec![value])
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Vec<T>, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = elements.next_element_seed(Text(PhantomData))? {
            values.push(value);
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_read() {
        assert_eq!(["0", "10", "30s"].map(seconds), [Ok(0), Ok(10), Ok(30)]);
        assert_eq!(["-1", "-1s", "-5"].map(seconds), [Ok(NO_LIMIT), Ok(NO_LIMIT), Ok(NO_LIMIT)]);
        for text in ["abc", "", "s", "-", "-x", "99999999999", "1.5"] {
            assert!(seconds(text).unwrap_err().contains("use a number of seconds"), "{text}");
        }
    }

    #[test]
    fn cpu_counts_are_read() {
        assert_eq!(["1", "254"].map(cpus), [Ok(1), Ok(254)]);
        for text in ["0", "255", "two", "", "-1", "99999999999", "1.5", "boot=2"] {
            assert_eq!(cpus(text), Err(format!("invalid CPU count {text:?}: use 1 to 254")));
        }
    }
}
