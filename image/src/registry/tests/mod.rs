//! Tests of the client: with a fake registry that does what none should, and with docker's own.

mod auth;
mod fake;
mod hostile;
mod pull;
mod real;

use std::fs;
use std::time::Duration;

use super::*;
use crate::digest::Digest;
use crate::fixtures::{Fixture, noise};
use crate::reference::Reference;
use crate::store::Store;

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("images")).unwrap();
    (directory, store)
}

fn fixture() -> Fixture {
    Fixture::new(&[&[("base", &noise(400_000, 1)), ("a/b", b"text")], &[("hello", b"#!/bin/sh\n")]])
}

/// A client that does not wait for long, and knows no credentials.
fn client() -> Client {
    Client::new(options())
}

fn options() -> RegistryOptions {
    let short = Duration::from_millis(600);
    RegistryOptions {
        timeouts: Timeouts { connect: short, response: short, read: short, document: 3 * short },
        ..RegistryOptions::default()
    }
}

fn reference(host: &str, name: &str) -> Reference {
    format!("{host}/{name}").parse().unwrap()
}

fn is_whole(store: &Store, fixture: &Fixture) {
    let image = store.resolve(&fixture.id().hex()).unwrap().unwrap();
    let layers: Vec<Digest> = image.layers.iter().map(|layer| layer.diff_id).collect();
    assert_eq!(layers, fixture.layers.iter().map(|layer| Digest::of(layer)).collect::<Vec<_>>());
    for part in store.disk(&image).unwrap().parts {
        assert_eq!(fs::metadata(&part.path).unwrap().len(), part.length);
    }
}

fn count(store: &Store, directory: &str) -> usize {
    fs::read_dir(store.root().join(directory)).unwrap().count()
}

/// The error and its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text += &format!(": {error}");
        next = error.source();
    }
    text
}
