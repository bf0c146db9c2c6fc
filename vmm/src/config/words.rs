//! The parts of an option, such as `PATH[,readonly][,id=NAME]`.

/// Splits at commas; a doubled comma stands for one that does not split, as in QEMU's options.
pub(super) fn split_at_single_commas(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character == ',' && characters.next_if_eq(&',').is_none() {
            words.push(String::new());
        } else if let Some(word) = words.last_mut() {
            word.push(character);
        }
    }
    words
}

/// `text` as a word that [`split_at_single_commas`] leaves whole.
pub(super) fn double_commas(text: &str) -> String {
    text.replace(',', ",,")
}
