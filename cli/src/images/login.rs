//! `mvm login` and `mvm logout`.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use clap::Args;
use image::{CredentialFiles, CredentialSource, Credentials, StoredIn, registry_of};
use instance::console::RawTerminal;

use super::registry::{RegistryArguments, UnpackedArguments};
use super::worker::{Failure, Input, Job, Outcome, Task};
use crate::complaint::complete;
use crate::process::ExitCode;
use crate::{chain, complain, exit_code, print};

/// The most bytes of a user name or a password.
const MAX_INPUT: u64 = 64 << 10;

const LOGIN_EXAMPLES: &str = "\
Examples:
  mvm login                                    Docker Hub
  mvm login -u me registry.lan:5000
  mvm login -u me --password-stdin ghcr.io < token

The credentials are stored as `docker login` stores them: in
~/.docker/config.json, or by the credential helper that this file names.";

/// Arguments of `mvm login`.
#[derive(Args)]
#[command(after_long_help = LOGIN_EXAMPLES)]
pub struct LoginCommand {
    /// Set the user's name
    #[arg(long, short, value_name = "NAME")]
    username: Option<String>,

    /// Set the password, which others on this host can then see
    #[arg(long, short, conflicts_with = "password_stdin")]
    password: Option<String>,

    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,

    /// Use plain HTTP, as is tried for registries on this host
    #[arg(long)]
    plain_http: bool,

    /// The registry; Docker Hub without one
    server: Option<String>,
}

impl LoginCommand {
    /// Checks credentials with a registry, and stores them.
    pub fn run(self) -> ExitCode {
        complete(self.login())
    }

    fn login(self) -> Result<ExitCode, String> {
        let registry = registry_of(self.server.as_deref())?;
        let files = CredentialFiles::of_user();
        let is_asked = self.username.is_none() && self.password.is_none() && !self.password_stdin;
        let known = if is_asked { files.find(&registry, "").map_err(|error| chain(&error))? } else { None };
        if let Some(known) = known {
            say("Authenticating with existing credentials...");
            match self.check(&registry, &known) {
                Ok(_) => return Ok(print(b"Login Succeeded\n", exit_code::SUCCESS)),
                Err(Failure::Refused(line)) if io::stdin().is_terminal() => complain(&line),
                Err(error) => return Err(cannot(&registry, error)),
            }
        }
        let mut credentials = self.credentials(&registry)?;
        let checked = self.check(&registry, &credentials).map_err(|error| cannot(&registry, error))?;
        if let Some(token) = checked {
            credentials = Credentials { user: "<token>".to_owned(), secret: token };
        }
        match files.store(&registry, &credentials).map_err(|error| chain(&error))? {
            StoredIn::File(path) => say(&format!(
                "The password is stored unencrypted in {}: a credential helper would store it elsewhere",
                path.display()
            )),
            StoredIn::Helper(_) => {}
        }
        Ok(print(b"Login Succeeded\n", exit_code::SUCCESS))
    }

    /// Asks the registry. Returns the identity token that it may give.
    fn check(&self, registry: &str, credentials: &Credentials) -> Result<Option<String>, Failure> {
        let job = Job::Login { registry: registry.to_owned(), credentials: credentials.clone() };
        let task = Task {
            job,
            store: None,
            registry: &RegistryArguments {
                plain_http: self.plain_http,
                unpacked: UnpackedArguments::default(),
            },
            registries: Vec::new(),
            input: Input::None,
            progress: &(),
        };
        match task.run()? {
            Outcome::LoggedIn(token) => Ok(token),
            _ => Ok(None),
        }
    }

    /// What the user gives, or types.
    fn credentials(&self, registry: &str) -> Result<Credentials, String> {
        let has_terminal = io::stdin().is_terminal();
        let user = match &self.username {
            Some(user) => user.clone(),
            None if self.password_stdin => return Err("no user name: use -u NAME".into()),
            None if has_terminal => ask(&format!("User name for {registry}: "))?,
            None => return Err("standard input is no terminal: use -u NAME and --password-stdin".into()),
        };
        let secret = match &self.password {
            Some(password) => {
                say("The password can be seen by others on this host: use --password-stdin");
                password.clone()
            }
            None if self.password_stdin => password_of_input()?,
            None if has_terminal => ask_hidden("Password: ")?,
            None => return Err("standard input is no terminal: use --password-stdin".into()),
        };
        if user.is_empty() {
            return Err("the user name is empty".into());
        }
        if user.contains(':') {
            return Err(format!("invalid user name {user:?}: it may not have a colon"));
        }
        if secret.is_empty() {
            return Err("the password is empty".into());
        }
        Ok(Credentials { user, secret })
    }
}

fn cannot(registry: &str, error: Failure) -> String {
    format!("cannot log in to {registry}: {}", error.into_line())
}

/// Says something that is no error.
fn say(line: &str) {
    complain(line);
}

fn unreadable(error: impl std::fmt::Display) -> String {
    format!("cannot read standard input: {error}")
}

/// The password that standard input is, without the line's end.
fn password_of_input() -> Result<String, String> {
    let mut text = String::new();
    io::stdin().lock().take(MAX_INPUT).read_to_string(&mut text).map_err(unreadable)?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

/// A line that the user types.
fn ask(prompt: &str) -> Result<String, String> {
    show(prompt);
    let mut line = String::new();
    io::stdin().lock().take(MAX_INPUT).read_line(&mut line).map_err(unreadable)?;
    Ok(line.trim().to_owned())
}

/// A line that the user types and does not see.
fn ask_hidden(prompt: &str) -> Result<String, String> {
    show(prompt);
    let raw = RawTerminal::enter().map_err(unreadable)?;
    let line = hidden_line(io::stdin().lock());
    drop(raw);
    show("\n");
    line.map_err(unreadable)?.ok_or_else(|| "no password was given".to_owned())
}

fn show(text: &str) {
    let mut out = io::stderr();
    // A user who does not see it may type all the same.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// A line of a terminal in raw mode; none after Ctrl-C, and after Ctrl-D where there is nothing before it.
fn hidden_line(input: impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    for byte in input.take(MAX_INPUT).bytes() {
        match byte? {
            b'\r' | b'\n' => return Ok(Some(String::from_utf8_lossy(&line).into_owned())),
            // Ctrl-C, and Ctrl-D.
            3 => return Ok(None),
            4 if line.is_empty() => return Ok(None),
            // Ctrl-U.
            21 => line.clear(),
            // Backspace removes a whole character.
            8 | 127 => while line.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {},
            byte => line.push(byte),
        }
    }
    Ok(None)
}

const LOGOUT_EXAMPLES: &str = "\
Examples:
  mvm logout                 Docker Hub
  mvm logout registry.lan:5000";

/// Arguments of `mvm logout`.
#[derive(Args)]
#[command(after_long_help = LOGOUT_EXAMPLES)]
pub struct LogoutCommand {
    /// The registry; Docker Hub without one
    server: Option<String>,
}

impl LogoutCommand {
    /// Removes the credentials of a registry.
    pub fn run(self) -> ExitCode {
        complete(self.logout())
    }

    fn logout(self) -> Result<ExitCode, String> {
        let registry = registry_of(self.server.as_deref())?;
        let had_some = CredentialFiles::of_user().erase(&registry).map_err(|error| chain(&error))?;
        let said = if had_some { "Removing login credentials for" } else { "Not logged in to" };
        Ok(print(format!("{said} {registry}\n").as_bytes(), exit_code::SUCCESS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hidden_line_can_be_edited_and_given_up() {
        let read = |bytes: &[u8]| hidden_line(bytes).unwrap();
        assert_eq!(read(b"secret\r").as_deref(), Some("secret"));
        assert_eq!(read(b"x\x15secr\xc3\xa9\x7fet\r").as_deref(), Some("secret"));
        assert_eq!(read(b"\x7f\x7fa\n").as_deref(), Some("a"));
        assert_eq!(read(b"secret\x03"), None);
        assert_eq!(read(b"\x04"), None);
        assert_eq!(read(b"secret"), None);
    }
}
