//! The filters of `mvm ps`.

use super::Item;
use crate::format::{FilterError, Filters, invalid, matches_name};

/// Their names.
pub const FILTERS: &[&str] = &[
    "id", "name", "kind", "status", "health", "exited", "ancestor", "label", "label!", "before", "since",
    "pod", "volume", "network",
];

/// The states of `status`.
const STATES: [&str; 7] = ["created", "restarting", "running", "removing", "paused", "exited", "dead"];

/// Which of `items` fit all filters.
///
/// # Errors
///
/// [`FilterError`]: a value that a filter does not take.
pub fn fits(filters: &Filters, items: &[Item]) -> Result<Vec<bool>, FilterError> {
    for state in filters.values("status") {
        if !STATES.contains(&state) {
            return Err(invalid("status", state, "created, restarting, running, paused or exited"));
        }
    }
    for health in filters.values("health") {
        if !["starting", "healthy", "unhealthy", "none"].contains(&health) {
            return Err(invalid("health", health, "starting, healthy, unhealthy or none"));
        }
    }
    for kind in filters.values("kind") {
        if !["vm", "container"].contains(&kind) {
            return Err(invalid("kind", kind, "vm or container"));
        }
    }
    for code in filters.values("exited") {
        if code.parse::<u8>().is_err() {
            return Err(invalid("exited", code, "an exit code from 0 to 255"));
        }
    }
    let moment = |name: &'static str| {
        let word = filters.values(name).last();
        word.map(|word| {
            let found = items.iter().find(|item| is_meant(item, word));
            found.map(Item::created).ok_or_else(|| invalid(name, word, "the ID or name of one that is there"))
        })
        .transpose()
    };
    let (before, since) = (moment("before")?, moment("since")?);
    let fits = |item: &Item| {
        filters.allow("id", |id| item.id().starts_with(id))
            && filters.allow("name", |name| item.name().is_some_and(|own| matches_name(name, &own)))
            && filters.allow("kind", |kind| item.kind().as_str() == kind)
            && filters.allow("health", |health| item.health_status().unwrap_or("none") == health)
            && filters.allow("status", |state| item.state == state)
            && filters
                .allow("exited", |code| item.exit_code().map(|own| own.to_string()).as_deref() == Some(code))
            && filters.allow("pod", |pod| is_in(item, pod))
            && filters.allow("ancestor", |image| is_of(item, image))
            && filters.allow("volume", |volume| has_mount(item, volume))
            && filters.allow("network", |network| item.network() == Some(network))
            && filters.allow_labels(|name| item.label(name))
            && filters.allow_without_labels(|name| item.label(name))
            && before.is_none_or(|before| item.created() < before)
            && since.is_none_or(|since| item.created() > since)
    };
    Ok(items.iter().map(fits).collect())
}

fn is_meant(item: &Item, word: &str) -> bool {
    item.name().as_deref() == Some(word) || (!word.is_empty() && item.id().starts_with(word))
}

/// Whether it has the volume of that name, the folder of the host, or anything at that path.
fn has_mount(item: &Item, word: &str) -> bool {
    let mounts = item.entry.as_ref().and_then(|entry| entry.details.get("Mounts")?.as_array());
    let fields = ["Name", "Source", "Destination"];
    mounts.into_iter().flatten().any(|mount| {
        fields.iter().any(|field| mount.get(field).and_then(serde_json::Value::as_str) == Some(word))
    })
}

/// Whether it is in the pod of that name or ID.
fn is_in(item: &Item, word: &str) -> bool {
    item.pod.as_ref().is_some_and(|(id, name)| {
        name.as_ref().is_some_and(|name| name.as_str() == word)
            || (!word.is_empty() && id.as_str().starts_with(word))
    })
}

/// Whether it is of the image that `word` names, with or without a tag, or by its ID.
fn is_of(item: &Item, word: &str) -> bool {
    let image = item.image();
    let id = item.entry.as_ref().and_then(|entry| entry.image_id.clone()).unwrap_or_default();
    let digits = id.strip_prefix("sha256:").unwrap_or(&id);
    let is_id = word.len() >= 4 && (id.starts_with(word) || digits.starts_with(word));
    image == word || image.strip_prefix(word).is_some_and(|tag| tag.starts_with(':')) || is_id
}
