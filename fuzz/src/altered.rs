//! States of devices that no device has saved: what one has, with a few of its values replaced.

use devices::Section;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use serde_json::Value;

/// What takes the place of a value.
#[derive(Arbitrary, Debug)]
pub enum New {
    /// Nothing, null, or what is false or true.
    Null,
    Bool(bool),
    /// A number.
    Small(i8),
    Number(u64),
    /// The number that is there, so much more or less.
    Near(i16),
    Text(String),
    /// A list of so many of the same.
    Many(u16, u8),
    /// As it is, but once more, where it is in a list.
    Again,
    /// It goes.
    Removed,
}

/// One change: which of the values, and to what.
#[derive(Arbitrary, Debug)]
pub struct Edit {
    place: u16,
    new: New,
}

/// The most values of a list that an edit makes: what is found in more is found in fewer.
const MOST: u16 = 2000;

/// Makes `edits` of the state in `section`, which is JSON.
pub fn alter(section: &mut Section, edits: &[Edit]) {
    let mut state: Value = serde_json::from_slice(&section.bytes).expect("a state is JSON");
    for Edit { place, new } in edits.iter().take(16) {
        let mut count = 0;
        visit(&mut state, &mut |_, _| count += 1);
        let place = usize::from(*place) % count.max(1);
        let mut index = 0;
        visit(&mut state, &mut |list, at| {
            if index == place {
                replace(list, at, new);
            }
            index += 1;
        });
    }
    section.bytes = serde_json::to_vec(&state).expect("JSON can be written");
}

/// Where a value is.
enum In<'a> {
    List(&'a mut Vec<Value>),
    Members(&'a mut serde_json::Map<String, Value>),
}

/// Calls `with` for each value in `value`, by the list or the object that it is in.
fn visit(value: &mut Value, with: &mut dyn FnMut(&mut In<'_>, usize)) {
    match value {
        Value::Array(list) => {
            list.iter_mut().for_each(|value| visit(value, with));
            let length = list.len();
            (0..length).rev().for_each(|at| with(&mut In::List(list), at));
        }
        Value::Object(members) => {
            members.values_mut().for_each(|value| visit(value, with));
            let length = members.len();
            (0..length).rev().for_each(|at| with(&mut In::Members(members), at));
        }
        _ => {}
    }
}

fn replace(place: &mut In<'_>, at: usize, new: &New) {
    match (new, &mut *place) {
        (New::Again, In::List(list)) => {
            let again = list.get(at).cloned();
            return list.extend(again);
        }
        (New::Removed, In::List(list)) => return drop(list.remove(at)),
        (New::Removed, In::Members(members)) => {
            let key = members.keys().nth(at).cloned();
            return drop(key.map(|key| members.remove(&key)));
        }
        _ => {}
    }
    let value = match place {
        In::List(list) => list.get_mut(at),
        In::Members(members) => members.values_mut().nth(at),
    };
    let Some(value) = value else { return };
    let number = value.as_i64().unwrap_or(0);
    match new {
        New::Null => *value = Value::Null,
        New::Bool(new) => *value = (*new).into(),
        New::Small(new) => *value = (*new).into(),
        New::Number(new) => *value = (*new).into(),
        New::Near(by) => *value = number.wrapping_add((*by).into()).into(),
        New::Text(new) => *value = new.clone().into(),
        New::Many(count, of) => *value = vec![*of; (count % MOST).into()].into(),
        New::Again | New::Removed => {}
    }
}
