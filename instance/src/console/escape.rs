//! The escape character of the console, for what the user says to mvm and not to the guest.

/// Ctrl-A.
const ESCAPE: u8 = 1;

/// What the user can say.
pub const HELP: &str = "\r\nCtrl-A x  stop the VM at once\r\nCtrl-A h  show this help\r\nCtrl-A Ctrl-A  send Ctrl-A to the guest\r\nAll other keys, Ctrl-C among them, go to the guest.\r\n";

/// What the user of an attached terminal can say.
pub const ATTACHED_HELP: &str = "\r\nCtrl-A d  leave the console; the VM goes on (Ctrl-A x does the same)\r\nCtrl-A h  show this help\r\nCtrl-A Ctrl-A  send Ctrl-A to the guest\r\nAll other keys, Ctrl-C among them, go to the guest.\r\n";

/// What a key sequence asks of mvm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Stop the VM.
    Stop,
    /// Show what there is.
    Help,
    /// Leave the console; nothing where mvm runs the VM itself.
    Detach,
}

/// Takes commands out of what is typed.
#[derive(Default)]
pub struct Escape {
    seen: bool,
}

impl Escape {
    /// Appends to `to_guest` what is not for mvm, and returns the commands in the order in which they came.
    pub fn filter(&mut self, typed: &[u8], to_guest: &mut Vec<u8>) -> Vec<Command> {
        let mut commands = Vec::new();
        for byte in typed {
            match (self.seen, *byte) {
                (false, ESCAPE) => self.seen = true,
                (false, byte) => to_guest.push(byte),
                (true, byte) => {
                    self.seen = false;
                    match byte {
                        ESCAPE => to_guest.push(ESCAPE),
                        b'x' => commands.push(Command::Stop),
                        b'd' => commands.push(Command::Detach),
                        b'h' | b'?' => commands.push(Command::Help),
                        _ => {}
                    }
                }
            }
        }
        commands
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("ls\x03", "ls\x03", &[])]
    #[case("\x01x", "", &[Command::Stop])]
    #[case("a\x01hb", "ab", &[Command::Help])]
    #[case("\x01d", "", &[Command::Detach])]
    #[case("\x01\x01x", "\x01x", &[])]
    #[case("\x01qx", "x", &[])]
    fn keys_are_told_apart(#[case] typed: &str, #[case] guest: &str, #[case] commands: &[Command]) {
        // All at once, and key by key as from a slow typist.
        for size in [typed.len(), 1] {
            let (mut escape, mut to_guest, mut found) = (Escape::default(), Vec::new(), Vec::new());
            for part in typed.as_bytes().chunks(size) {
                found.extend(escape.filter(part, &mut to_guest));
            }
            assert_eq!((to_guest.as_slice(), found.as_slice()), (guest.as_bytes(), commands));
        }
    }
}
