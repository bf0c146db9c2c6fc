//! A configuration file: any text is a VM's configuration or an error of one line.

#![no_main]

// The program is not a library; these files of it do not depend on the others.
#[allow(dead_code, reason = "reading the file is not tested here")]
#[path = "../../../cli/src/config_file.rs"]
mod config_file;
#[allow(dead_code, reason = "the name of the VM is not needed")]
#[path = "../../../cli/src/options.rs"]
mod options;
#[allow(dead_code, reason = "an image is not looked for here")]
#[path = "../../../cli/src/root_config.rs"]
mod root_config;
#[allow(dead_code, reason = "an error needs little of it")]
#[path = "../../../cli/src/table.rs"]
mod table;
#[allow(dead_code, reason = "some parse words of the command line only")]
#[path = "../../../cli/src/values.rs"]
mod values;

use std::path::Path;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match config_file::parse(text, Path::new("/vm/vm.toml")) {
        // It may lack a kernel; a flag wins over it.
        Ok(options) => drop(options::BootOptions::default().or(options).into_config()),
        Err(error) => {
            let error = error.to_string();
            // A message of a thousand characters, some of them escaped.
            assert!(error.lines().count() == 1 && error.len() < 16 << 10, "{error}");
        }
    }
});
