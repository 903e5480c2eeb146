//! The user that a command is to run as.

use std::ffi::CString;
use std::path::PathBuf;

use nix::unistd::{Gid, Uid, initgroups, setresgid, setresuid};

use super::harden::HardenError;

/// An entry of the user database.
#[derive(Debug)]
pub(super) struct User {
    name: String,
    uid: Uid,
    gid: Gid,
    home: PathBuf,
    shell: PathBuf,
}

impl User {
    /// Looks `name` up, which may also be a number.
    pub(super) fn find(name: &str) -> Result<Self, String> {
        let found = match name.parse() {
            Ok(number) => nix::unistd::User::from_uid(Uid::from_raw(number)),
            Err(_) => nix::unistd::User::from_name(name),
        };
        let user = found
            .map_err(|errno| format!("--user {name}: the user database does not answer: {errno}"))?
            .ok_or_else(|| format!("--user {name}: there is no such user"))?;
        Ok(Self { name: user.name, uid: user.uid, gid: user.gid, home: user.dir, shell: user.shell })
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
        let name =
            CString::new(self.name.as_bytes()).map_err(|_| refused("initgroups")(nix::Error::EINVAL))?;
        initgroups(&name, self.gid).map_err(refused("initgroups"))?;
        setresgid(self.gid, self.gid, self.gid).map_err(refused("setresgid"))?;
        setresuid(self.uid, self.uid, self.uid).map_err(refused("setresuid"))
    }
}
