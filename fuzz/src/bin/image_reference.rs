//! Image references: any text is one that is read as it is written, or an error of one line.

#![no_main]

use image::Reference;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match text.parse::<Reference>() {
        Ok(reference) => {
            for written in [reference.to_string(), reference.canonical()] {
                assert_eq!(written.parse().as_ref(), Ok(&reference), "{written}");
            }
            assert!(reference.tag().is_some() || reference.digest().is_some());
            assert!(!reference.repository().split('/').any(|part| matches!(part, "" | "." | "..")));
        }
        Err(error) => {
            let said = error.to_string();
            assert!(!said.contains(char::is_control), "{said:?}");
        }
    }
});
