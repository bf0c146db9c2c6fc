//! Users and groups by name, from an image's own files.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

use crate::error::{Result, failure};

/// The most that is read of a file: it may be a device or without an end.
const MOST: u64 = 4 << 20;

/// Who a process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: String,
}

/// What `/etc/passwd` and `/etc/group` say.
pub struct Accounts {
    pub passwd: String,
    pub group: String,
}

impl Accounts {
    /// Those of the root directory. A file that is missing or not a file is empty.
    pub fn read() -> Self {
        Self { passwd: read("/etc/passwd"), group: read("/etc/group") }
    }

    /// The user that `text` names as docker has it: `user` or `user:group`, by name or number; and `more` groups.
    pub fn find(&self, text: &str, more: &[String]) -> Result<Identity> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let user = if user.is_empty() { "0" } else { user };
        let by_number = user.parse::<u32>().ok();
        let account = (lines(&self.passwd)).find(|fields| {
            fields.first() == Some(&user) || by_number.is_some() && number(fields, 2) == by_number
        });
        let (uid, primary, home, name) = match (&account, by_number) {
            (Some(fields), _) => (
                number(fields, 2).ok_or_else(|| failure(format!("/etc/passwd has no number for {user}")))?,
                number(fields, 3).unwrap_or(0),
                fields.get(5).copied().filter(|home| !home.is_empty()).unwrap_or("/"),
                fields.first().copied(),
            ),
            (None, Some(uid)) => (uid, 0, "/", None),
            (None, None) => {
                return Err(failure(format!(
                    "unable to find user {user}: no matching entries in passwd file"
                )));
            }
        };
        let gid = match group {
            Some(group) if !group.is_empty() => self.group(group)?,
            _ => primary,
        };
        let mut groups = Vec::new();
        if group.is_none_or(str::is_empty)
            && let Some(name) = name
        {
            let is_member = |fields: &Vec<&str>| {
                fields.get(3).is_some_and(|members| members.split(',').any(|member| member == name))
            };
            groups.extend(lines(&self.group).filter(is_member).filter_map(|fields| number(&fields, 2)));
        }
        for group in more {
            groups.push(self.group(group)?);
        }
        groups.push(gid);
        groups.sort_unstable();
        groups.dedup();
        Ok(Identity { uid, gid, groups, home: home.to_owned() })
    }

    /// The variables by which programs know the user with this number, beside its home.
    pub fn variables(&self, uid: u32) -> Vec<String> {
        let account = lines(&self.passwd).find(|fields| number(fields, 2) == Some(uid));
        let Some(fields) = account else { return Vec::new() };
        let field = |index: usize| fields.get(index).copied().filter(|text| !text.is_empty());
        let shell = field(6).unwrap_or("/bin/sh");
        let name = field(0).into_iter().flat_map(|name| [format!("USER={name}"), format!("LOGNAME={name}")]);
        name.chain([format!("SHELL={shell}")]).collect()
    }

    fn group(&self, text: &str) -> Result<u32> {
        let by_name = lines(&self.group).find(|fields| fields.first() == Some(&text));
        by_name
            .and_then(|fields| number(&fields, 2))
            .or_else(|| text.parse().ok())
            .ok_or_else(|| failure(format!("unable to find group {text}: no matching entries in group file")))
    }
}

fn lines(file: &str) -> impl Iterator<Item = Vec<&str>> {
    file.lines().filter(|line| !line.starts_with('#')).map(|line| line.split(':').collect())
}

fn number(fields: &[&str], index: usize) -> Option<u32> {
    fields.get(index)?.parse().ok()
}

fn read(path: &str) -> String {
    let mut text = Vec::new();
    let open = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    if let Ok(file) = open
        && file.metadata().is_ok_and(|metadata| metadata.is_file())
    {
        let _ = file.take(MOST).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\n# no:x:9:9::/:\nweb:x:33:34:Web:/srv:/bin/sh\nbroken\n"
                .into(),
            group: "root:x:0:\nwww:x:34:\nwheel:x:10:root,web\n7:x:70:\n".into(),
        }
    }

    #[rstest]
    #[case("", &[], (0, 0), &[0, 10], "/root")]
    #[case("root", &[], (0, 0), &[0, 10], "/root")]
    #[case("web", &[], (33, 34), &[10, 34], "/srv")]
    #[case("33", &[], (33, 34), &[10, 34], "/srv")]
    #[case("web:www", &["wheel"], (33, 34), &[10, 34], "/srv")]
    #[case("web:5", &["7", "99"], (33, 5), &[5, 70, 99], "/srv")]
    #[case("4242", &[], (4242, 0), &[0], "/")]
    #[case("4242:4343", &[], (4242, 4343), &[4343], "/")]
    fn users_are_those_of_docker(
        #[case] text: &str,
        #[case] more: &[&str],
        #[case] (uid, gid): (u32, u32),
        #[case] groups: &[u32],
        #[case] home: &str,
    ) {
        let more: Vec<String> = more.iter().map(|group| (*group).to_owned()).collect();
        let expected = Identity { uid, gid, groups: groups.to_vec(), home: home.into() };
        assert_eq!(accounts().find(text, &more).unwrap(), expected);
    }

    #[rstest]
    #[case(33, &["USER=web", "LOGNAME=web", "SHELL=/bin/sh"])]
    #[case(5, &["USER=games", "LOGNAME=games", "SHELL=/bin/sh"])]
    #[case(6, &["SHELL=/sbin/nologin"])]
    #[case(77, &[])]
    fn a_user_has_the_variables_of_a_login(#[case] uid: u32, #[case] expected: &[&str]) {
        let passwd = accounts().passwd + "games:x:5:5::/games:\n:x:6:6::/:/sbin/nologin\n";
        assert_eq!(Accounts { passwd, group: String::new() }.variables(uid), expected);
    }

    #[rstest]
    #[case("nobody", "unable to find user nobody")]
    #[case("no", "unable to find user no")]
    #[case("web:staff", "unable to find group staff")]
    #[case("-1", "unable to find user -1")]
    fn unknown_names_are_refused(#[case] text: &str, #[case] says: &str) {
        let failure = accounts().find(text, &[]).unwrap_err();
        assert!(failure.message.contains(says), "{}", failure.message);
    }
}
