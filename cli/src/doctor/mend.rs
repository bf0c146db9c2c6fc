//! The command that mends what a command can mend.

use std::env;
use std::path::{Path, PathBuf};

use vmm::{Check, Remedy};

/// One line for a shell, that mends all of `checks` which a command can mend; `None` where that is none of them. What
/// needs root is behind `sudo`, unless the user is root.
pub fn command(checks: &[Check], is_root: bool) -> Option<String> {
    let sudo = if is_root { "" } else { "sudo " };
    let remedies: Vec<&Remedy> = checks.iter().flat_map(|check| &check.remedies).collect();
    let mut steps: Vec<String> = Vec::new();
    let mut packages = remedies.iter().filter_map(|remedy| match remedy {
        Remedy::Package { installer, name } => Some((*installer, *name)),
        Remedy::Root(_) | Remedy::User(_) => None,
    });
    if let Some((installer, first)) = packages.next() {
        let names = packages.fold(first.to_owned(), |names, (_, name)| format!("{names} {name}"));
        steps.push(format!("{sudo}{installer} {names}"));
    }
    steps.extend(remedies.iter().filter_map(|remedy| match remedy {
        Remedy::Package { .. } => None,
        Remedy::Root(command) => Some(format!("{sudo}{command}")),
        Remedy::User(command) => Some(command.clone()),
    }));
    (!steps.is_empty()).then(|| steps.join(" && "))
}

/// What builds the files that containers need, for a program that is among mvm's sources.
pub fn assets() -> Option<Remedy> {
    let program = env::current_exe().ok()?;
    let sources = program.ancestors().find(|directory| directory.join("tools/assets").is_file())?;
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = cache.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")))?;
    let (tool, target) = (quoted(&sources.join("tools/assets"))?, quoted(&cache.join("mvm/assets"))?);
    Some(Remedy::User(format!("assets=$({tool}) && install -D -m 644 -t {target} \"$assets\"/*")))
}

/// A path as a word of a shell's; `None` where it is not text that can be shown.
fn quoted(path: &Path) -> Option<String> {
    // Neither a line break nor what moves a terminal's cursor can be shown.
    let path = path.to_str().filter(|path| !path.contains(char::is_control))?;
    let is_plain = path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-+".contains(&byte));
    Some(if is_plain { path.to_owned() } else { format!("'{}'", path.replace('\'', r"'\''")) })
}

#[cfg(test)]
mod tests {
    use vmm::Verdict;

    use super::*;

    fn check(remedies: Vec<Remedy>) -> Check {
        Check { name: "x", verdict: Verdict::Poor, found: "y".into(), fix: Some("z".into()), remedies }
    }

    #[test]
    fn one_line_mends_all_and_installs_all_packages_at_once() {
        let package = |name| Remedy::Package { installer: "apt-get install -y", name };
        let checks = [
            check(vec![Remedy::Root("modprobe kvm_amd".into())]),
            check(vec![]),
            check(vec![package("gcc"), Remedy::User("cargo install x".into())]),
            check(vec![package("passt")]),
        ];
        let expected = "apt-get install -y gcc passt && modprobe kvm_amd && cargo install x";
        assert_eq!(command(&checks, true).unwrap(), expected);
        let expected = "sudo apt-get install -y gcc passt && sudo modprobe kvm_amd && cargo install x";
        assert_eq!(command(&checks, false).unwrap(), expected);
        assert_eq!(command(&[check(vec![])], false), None);
    }

    #[test]
    fn paths_are_words_of_the_shell() {
        assert_eq!(quoted(Path::new("/a/b-c.d")).unwrap(), "/a/b-c.d");
        assert_eq!(quoted(Path::new("/a b/it's")).unwrap(), r"'/a b/it'\''s'");
        assert_eq!(quoted(Path::new("/a\x1b[2J")), None);
    }

    #[test]
    fn a_program_among_the_sources_knows_what_builds_the_rest() {
        let Some(Remedy::User(command)) = assets() else { panic!("the tests are among the sources") };
        assert!(
            command.contains("/tools/assets)") && command.contains("/mvm/assets \"$assets\"/*"),
            "{command}"
        );
    }
}
