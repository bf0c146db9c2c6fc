//! Environments of processes.

use std::collections::HashMap;

/// Sets variables of the form `NAME=VALUE`: one that is there gets its new value at its place, others are added behind.
/// An image may have very many.
pub fn set_variables<'a>(env: &mut Vec<String>, variables: impl IntoIterator<Item = &'a String>) {
    let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
    let mut places: HashMap<String, usize> =
        env.iter().enumerate().map(|(place, variable)| (name(variable), place)).collect();
    for variable in variables {
        let place = *places.entry(name(variable)).or_insert(env.len());
        match env.get_mut(place) {
            Some(known) => known.clone_from(variable),
            None => env.push(variable.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_values_replace_earlier_ones_at_their_place() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let mut env = words("A=1 B=2");
        set_variables(&mut env, &words("B=3 C=4 C=5 AA=6 A"));
        assert_eq!(env, words("A B=3 C=5 AA=6"));
    }

    #[test]
    fn many_variables_take_no_time() {
        let many: Vec<String> = (0..100_000).map(|number| format!("V{number}=x")).collect();
        let mut env = Vec::new();
        set_variables(&mut env, many.iter().chain(&many));
        assert!(env == many);
    }
}
