//! `mvm events`, and noting them.

use std::io::{self, Write};
use std::time::Duration;

use clap::Args;
use container::{MountOption, MountSource};
use instance::{Entry, Event, EventReader, Kind, VolumeName, Volumes, time};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde_json::{Value, json};

use crate::complaint::complete;
use crate::format::{Column, Filter, Filters, Format};
use crate::process::ExitCode;
use crate::{chain, complain, exit_code};

const EXAMPLES: &str = "\
Examples:
  mvm events
  mvm events --since 10m --until 0m --filter event=die
  mvm events --filter container=web --format '{{.Action}} {{.Actor.Attributes.name}}'

Types: container, image, volume and pod.
Filters: container, event, image, label, pod, type and volume; a name has to fit one of its values.
Fields: Time, TimeNano, Type, Action, ID, Status, From, Actor.ID and Actor.Attributes.";

const FILTERS: &[&str] = &["container", "event", "image", "label", "pod", "type", "volume"];

const COLUMNS: &[Column] = &[
    ("Time", "TIME"),
    ("TimeNano", "TIME"),
    ("Type", "TYPE"),
    ("Action", "ACTION"),
    ("ID", "ID"),
    ("Status", "STATUS"),
    ("From", "FROM"),
    ("Actor", "ACTOR"),
];

/// Arguments of `mvm events`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct EventsCommand {
    /// Begin with what was then: a time, or how long ago, as in 10m
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<Duration>,

    /// End with what was then
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<Duration>,

    /// Print some only: NAME=VALUE
    #[arg(long, short, value_name = "FILTER")]
    filter: Vec<Filter>,

    /// Print in a form: json, or a Go template
    #[arg(long, value_name = "FORM")]
    format: Option<Format>,
}

fn moment(text: &str) -> Result<Duration, String> {
    time::parse_point(text, time::since_1970()).ok_or_else(|| {
        format!("invalid time {text:?}: write 2024-02-29T12:34:56Z, seconds since 1970, or how long ago, as in 10m")
    })
}

/// Notes what has happened to a container or pod.
pub fn note(entry: &Entry, action: &str, more: &[(&str, &str)]) {
    if entry.kind != Kind::Vm {
        Event::of_entry(entry, action, more).note();
    }
}

/// The same of the one that `word` means, where there is one.
pub fn note_of(word: &str, action: &str, more: &[(&str, &str)]) {
    if let Ok(kept) = crate::targets::kept(word) {
        note(&kept.entry, action, more);
    }
}

/// Notes what has happened to an image.
pub fn note_image(action: &str, id: &str, name: &str) {
    note_with("image", action, id, &[("name", name)]);
}

/// Notes that things of a `kind` were removed, which has freed so many `bytes`.
pub fn note_prune(kind: &str, bytes: u64) {
    note_with(kind, "prune", "", &[("reclaimed", &bytes.to_string())]);
}

fn note_with(kind: &str, action: &str, id: &str, attributes: &[(&str, &str)]) {
    let attributes = attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Event::now(kind, action, id, attributes.collect()).note();
}

/// Notes that the container `id` has the volumes of `mounts` from now on.
pub fn note_mounts(id: &str, mounts: &[MountOption]) {
    for (name, mount) in volumes(mounts) {
        let writes = (!mount.read_only).to_string();
        let attributes = [
            ("container", id),
            ("destination", mount.target.as_str()),
            ("driver", driver(name)),
            ("propagation", ""),
            ("read/write", &writes),
        ];
        note_with("volume", "mount", name.as_str(), &attributes);
    }
}

/// Notes that it has them no more.
pub fn note_unmounts(id: &str, mounts: &[MountOption]) {
    for (name, _) in volumes(mounts) {
        note_with("volume", "unmount", name.as_str(), &[("container", id), ("driver", driver(name))]);
    }
}

fn volumes(mounts: &[MountOption]) -> impl Iterator<Item = (&VolumeName, &MountOption)> {
    mounts.iter().filter_map(|mount| match &mount.source {
        MountSource::Volume(volume) => Some((volume.name.as_ref()?, mount)),
        _ => None,
    })
}

fn driver(name: &VolumeName) -> &'static str {
    let found = Volumes::of_user().ok().and_then(|volumes| volumes.find(name).ok());
    found.map(|volume| volume.record.driver).unwrap_or_default().as_str()
}

impl EventsCommand {
    /// Prints events, and those that come.
    pub fn run(self) -> ExitCode {
        let filters = match Filters::new(&self.filter, FILTERS) {
            Ok(filters) => filters,
            Err(error) => return complete(Err(error)),
        };
        match self.print(&filters) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => exit_code::SUCCESS.into(),
            Err(error) => {
                complain(&format!("cannot print events: {error}"));
                exit_code::FAILURE.into()
            }
            Ok(()) => exit_code::SUCCESS.into(),
        }
    }

    fn print(&self, filters: &Filters) -> io::Result<()> {
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let since = nanoseconds(self.since.unwrap_or_else(time::since_1970));
        let until = self.until.map(nanoseconds);
        let mut reader = EventReader::of_user()?;
        let mut output = io::stdout();
        loop {
            reader.clear();
            while let Some(event) = reader.next_event()? {
                let is_meant = event.time >= since && until.is_none_or(|until| event.time <= until);
                if is_meant && fits(&event, filters) {
                    let line = self.line(&event).map_err(io::Error::other)?;
                    output.write_all(line.as_bytes())?;
                }
            }
            output.flush()?;
            let left = self.until.map(|until| until.saturating_sub(time::since_1970()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(());
            }
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            let mut fds = [PollFd::new(&reader, PollFlags::IN), PollFd::new(&output, PollFlags::empty())];
            match poll(&mut fds, left.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if fds.last().is_some_and(|fd| fd.revents().intersects(PollFlags::ERR | PollFlags::HUP)) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
        }
    }

    fn line(&self, event: &Event) -> Result<String, String> {
        match &self.format {
            Some(format) if !format.is_default() => {
                format.list(COLUMNS, &[], &[fields(event)]).map_err(|error| chain(&error))
            }
            _ => Ok(line(event)),
        }
    }
}

/// The event as docker prints it, on one line.
fn line(event: &Event) -> String {
    let time = time::rfc3339(Duration::from_nanos(event.time));
    let attributes: Vec<_> = event.attributes.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let line = format!("{time} {} {} {} ({})", event.kind, event.action, event.id, attributes.join(", "));
    line.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect::<String>() + "\n"
}

/// Its fields, by docker's names.
fn fields(event: &Event) -> Value {
    let from = event.attributes.get("image").filter(|_| event.kind == "container");
    json!({
        "Type": event.kind,
        "Action": event.action,
        "Actor": { "ID": event.id, "Attributes": event.attributes },
        "ID": event.id,
        "id": event.id,
        "Status": event.action,
        "status": event.action,
        "From": from,
        "from": from,
        "scope": "local",
        "Time": event.time / 1_000_000_000,
        "time": event.time / 1_000_000_000,
        "TimeNano": event.time,
        "timeNano": event.time,
    })
}

fn fits(event: &Event, filters: &Filters) -> bool {
    let attribute = |name: &str| event.attributes.get(name).map(String::as_str);
    let is_meant =
        |word: &str| attribute("name") == Some(word) || (!word.is_empty() && event.id.starts_with(word));
    // As docker's, the beginning of a name or an ID.
    let is_of_kind = |kind: &str, word: &str| {
        let word = word.trim_start_matches('/');
        event.kind == kind
            && (attribute("name").is_some_and(|name| name.starts_with(word)) || event.id.starts_with(word))
    };
    // As docker's, the image of a container too.
    let is_of = |image: &str| {
        let name = if event.kind == "image" { attribute("name") } else { attribute("image") };
        name.is_some_and(|name| name == image || name.split(':').next() == Some(image))
            || event.kind == "image" && is_meant(image)
    };
    filters.allow("type", |kind| event.kind == kind)
        && filters
            .allow("event", |action| event.action == action || event.action.split(':').next() == Some(action))
        && ["container", "volume", "pod"]
            .iter()
            .all(|kind| filters.allow(kind, |word| is_of_kind(kind, word)))
        && filters.allow("image", is_of)
        && filters.allow_labels(attribute)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(&["container=web"], true)]
    #[case(&["container=0123"], true)]
    #[case(&["container=we"], true)]
    #[case(&["container=/web"], true)]
    #[case(&["volume=web"], false)]
    #[case(&["pod=web"], false)]
    #[case(&["container=db"], false)]
    #[case(&["image=nginx"], true)]
    #[case(&["image=nginx:1"], true)]
    #[case(&["event=health_status"], true)]
    #[case(&["event=die", "event=health_status: healthy"], true)]
    #[case(&["label=a=b", "type=container"], true)]
    #[case(&["label=a=c"], false)]
    #[case(&["type=image"], false)]
    fn events_are_filtered_as_dockers(#[case] filters: &[&str], #[case] expected: bool) {
        let pairs = [("name", "web"), ("image", "nginx:1"), ("a", "b")];
        let attributes = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let event = Event::now("container", "health_status: healthy", "0123456789ab", attributes);
        let given: Vec<Filter> = filters.iter().map(|filter| filter.parse().unwrap()).collect();
        assert_eq!(fits(&event, &Filters::new(&given, FILTERS).unwrap()), expected);
        let text = line(&Event { time: 1_709_210_096_000_000_007, ..event });
        let expected = "2024-02-29T12:34:56.000000007Z container health_status: healthy 0123456789ab \
                        (a=b, image=nginx:1, name=web)\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn events_of_volumes_are_found_by_their_name() {
        let attributes =
            [("driver", "local")].map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let event = Event::now("volume", "create", "data", attributes);
        for (filter, expected) in [
            ("volume=data", true),
            ("volume=da", true),
            ("volume=other", false),
            ("container=data", false),
            ("type=volume", true),
        ] {
            let filters = Filters::new(&[filter.parse().unwrap()], FILTERS).unwrap();
            assert_eq!(fits(&event, &filters), expected, "{filter}");
        }
    }
}
