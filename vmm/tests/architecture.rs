//! The layers of the workspace and of this crate are those of docs/architecture.md.

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    fn top() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
    }

    /// All Rust files below `directory`, with their text.
    fn sources(directory: &Path) -> Vec<(PathBuf, String)> {
        let mut all = Vec::new();
        for entry in fs::read_dir(directory).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                all.extend(sources(&path));
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                all.push((path, text));
            }
        }
        assert!(!all.is_empty(), "{}", directory.display());
        all
    }

    /// No file of `module` of this crate names one of `others`.
    fn knows_nothing_of(module: &str, others: &[&str]) {
        for (path, text) in sources(&top().join("vmm/src").join(module)) {
            for other in others {
                let name = format!("crate::{other}");
                assert!(!text.contains(&name), "{} uses {name}", path.display());
            }
        }
    }

    #[test]
    fn modules_depend_downwards_only() {
        knows_nothing_of(
            "arch",
            &[
                "loader",
                "gdb",
                "vcpu",
                "device_manager",
                "vm::",
                "launch",
                "console",
                "control",
                "host",
                "error",
                "VmError",
            ],
        );
        knows_nothing_of("vcpu", &["gdb", "device_manager", "vm::", "launch", "console", "control"]);
        knows_nothing_of("loader", &["gdb", "vcpu", "device_manager", "vm::", "launch"]);
        knows_nothing_of(
            "config",
            &["arch", "loader", "gdb", "vcpu", "device_manager", "vm::", "launch", "kvm"],
        );
    }

    /// Registers, devices and tables of an architecture, as code names them.
    const PARTICULAR: [&str; 21] = [
        "cpuid",
        "msr",
        "msrs",
        "lapic",
        "apic",
        "gdt",
        "idt",
        "rsdp",
        "e820",
        "vmx",
        "svm",
        "rip",
        "rflags",
        "cr0",
        "i8042",
        "cmos",
        "pvh",
        "ttys0",
        "kvm_regs",
        "kvm_sregs",
        "tsc_khz",
    ];

    /// The names in `code` by line, in lower case, without comments and texts for people, which may have several lines.
    fn names(code: &str) -> Vec<Vec<String>> {
        let mut in_text = false;
        let mut of_line = |line: &str| {
            let line = line.replace("\\\"", "").replace("'\"'", "");
            let mut outside = String::new();
            for (index, part) in line.split('"').enumerate() {
                in_text ^= index > 0;
                let (code, is_commented) =
                    part.split_once("//").map_or((part, false), |(code, _)| (code, true));
                if !in_text {
                    outside += code;
                    if is_commented {
                        break;
                    }
                }
            }
            let words = outside.split(|letter: char| !letter.is_alphanumeric() && letter != '_');
            words.map(str::to_lowercase).collect()
        };
        code.lines().map(&mut of_line).collect()
    }

    #[test]
    fn an_architecture_is_named_in_its_own_module_only() {
        let source = top().join("vmm/src");
        // The files of others, without those that are tests.
        let is_others = |path: &Path| {
            let path = path.strip_prefix(&source).unwrap();
            let is_test = path.iter().any(|part| part.to_string_lossy().contains("tests"));
            !is_test && !path.starts_with("arch") && path != Path::new("loader/bzimage.rs")
        };
        for (path, text) in sources(&source).iter().filter(|(path, _)| is_others(path)) {
            let product = text.split("#[cfg(test)]").next().unwrap_or_default();
            for (number, names) in (1..).zip(names(product)) {
                let found = names.into_iter().find(|name| PARTICULAR.contains(&name.as_str()));
                assert_eq!(found, None, "{}:{number}", path.display());
            }
        }
        // It finds what it looks for.
        let own = fs::read_to_string(source.join("arch/x86_64/registers.rs")).unwrap();
        assert!(names(&own).concat().iter().any(|name| name == "kvm_sregs"));
    }

    /// The crates of the workspace, and what each may depend on.
    const CRATES: [(&str, &[&str]); 12] = [
        ("devices", &[]),
        ("instance", &[]),
        ("erofs", &[]),
        ("copies", &["erofs"]),
        ("image", &["erofs"]),
        ("agent-protocol", &[]),
        ("agent", &["agent-protocol", "copies"]),
        ("jail", &[]),
        ("vmm", &["devices", "instance", "jail"]),
        ("container", &["agent-protocol", "devices", "instance", "jail", "vmm"]),
        ("cli", &["agent-protocol", "container", "copies", "devices", "image", "instance", "jail", "vmm"]),
        ("tests", &["agent-protocol", "instance"]),
    ];

    #[test]
    fn crates_depend_downwards_only_and_are_in_the_map() {
        let docs = fs::read_to_string(top().join("docs/architecture.md")).unwrap();
        let workspace = fs::read_to_string(top().join("Cargo.toml")).unwrap();
        let members = workspace.split_once("members = [").unwrap().1.split(']').next().unwrap();
        assert_eq!(members.matches('"').count() / 2, CRATES.len(), "{members}");
        for (name, allowed) in CRATES {
            assert!(members.contains(&format!("\"{name}\"")), "{name} is in the workspace");
            assert!(
                docs.contains(&format!("\n| `{name}` | ")),
                "docs/architecture.md has no line for {name}"
            );
            let manifest = fs::read_to_string(top().join(name).join("Cargo.toml")).unwrap();
            for (other, _) in CRATES {
                let depends = manifest.lines().any(|line| line.split(['.', ' ']).next() == Some(other));
                assert!(!depends || allowed.contains(&other), "{name} depends on {other}");
            }
        }
    }

    /// The files that docs/architecture.md sends its reader to.
    #[test]
    fn files_that_the_docs_name_exist() {
        let docs = fs::read_to_string(top().join("docs/architecture.md")).unwrap();
        let named: Vec<&str> = docs.split('`').skip(1).step_by(2).filter(|word| word.contains('/')).collect();
        assert!(named.len() > 20, "{named:?}");
        for word in named {
            let bases = ["", "vmm/src/", "devices/src/", "devices/src/virtio/"];
            let exists = bases.iter().any(|base| top().join(base).join(word).exists());
            assert!(exists || word.contains("NAME") || word == "/dev/kvm", "there is no {word}");
        }
    }
}
