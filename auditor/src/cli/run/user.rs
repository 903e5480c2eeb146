//! The user that a command is to run as.

use std::ffi::CString;
use std::path::PathBuf;

use nix::unistd::{Gid, Uid, getgrouplist, setgroups, setresgid, setresuid};

use super::harden::HardenError;

/// An entry of the user database.
#[derive(Debug)]
pub(super) struct User {
    name: String,
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    home: PathBuf,
    shell: PathBuf,
}

impl User {
    /// Looks `name` up, which may also be a number; and the user's groups.
    pub(super) fn find(name: &str) -> Result<Self, String> {
        let found = match name.parse() {
            Ok(number) => nix::unistd::User::from_uid(Uid::from_raw(number)),
            Err(_) => nix::unistd::User::from_name(name),
        };
        let user = found
            .map_err(|errno| format!("--user {name}: the user database does not answer: {errno}"))?
            .ok_or_else(|| format!("--user {name}: there is no such user"))?;
        // Now and not when they are assumed: the session has begun by then, and to ask a name service is to use a unix socket, which
        // would be the agent's use of it.
        let groups = CString::new(user.name.as_bytes())
            .map_err(|_| nix::Error::EINVAL)
            .and_then(|name| getgrouplist(&name, user.gid))
            .map_err(|errno| format!("--user {name}: the group database does not answer: {errno}"))?;
        Ok(Self { name: user.name, uid: user.uid, gid: user.gid, groups, home: user.dir, shell: user.shell })
    }

    /// Its number.
    pub(super) fn number(&self) -> u32 {
        self.uid.as_raw()
    }

    /// What login(1) would set, so that the command does not find the caller's home directory.
    pub(super) fn environment(&self) -> [(&'static str, std::ffi::OsString); 4] {
        [
            ("HOME", self.home.clone().into()),
            ("SHELL", self.shell.clone().into()),
            ("USER", self.name.clone().into()),
            ("LOGNAME", self.name.clone().into()),
        ]
    }

    /// Becomes this user for good: real, effective and saved ids, and the groups.
    pub(super) fn assume(&self) -> Result<(), HardenError> {
        let refused = |call| move |source| HardenError::User { call, user: self.name.clone(), source };
        setgroups(&self.groups).map_err(refused("setgroups"))?;
        setresgid(self.gid, self.gid, self.gid).map_err(refused("setresgid"))?;
        setresuid(self.uid, self.uid, self.uid).map_err(refused("setresuid"))
    }
}
