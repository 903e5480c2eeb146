//! Certificates for one test: an authority of its own, a server's certificate and a client's, as `openssl` makes them.
//!
//! Nothing in here outlives the test's folder, and nobody else's trust store is touched: clients are told of the authority by
//! name.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::unistd::User;
use sha2::{Digest, Sha256};

use crate::child;

const LIMIT: Duration = Duration::from_secs(30);
/// The name that servers are asked for; clients that send one send it as SNI.
pub const SERVER: &str = "localhost";
/// The common name in the client's certificate.
pub const CLIENT: &str = "agent with a certificate";

/// The kind of the server's key: with TLS 1.2 it decides which suites there are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Key {
    /// RSA with 2048 bits.
    Rsa,
    /// The curve P-256.
    Ec,
}

impl Key {
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Rsa => &["-newkey", "rsa:2048"],
            Self::Ec => &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
        }
    }
}

/// Files of an authority, of a server and of a client.
#[derive(Clone, Debug)]
pub struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    /// Makes them in a new folder of `parent`, the server's key for `server` alone and the client's for everybody.
    ///
    /// # Errors
    /// openssl is not there or refuses.
    pub fn new(parent: &Path, key: Key, server: &User) -> Result<Self> {
        let folder = parent.join("certificates");
        fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let made = Self { folder };
        let authority = [
            "-addext",
            "basicConstraints=critical,CA:TRUE",
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",
        ];
        made.make(key, "authority", "test authority", &authority)?;
        let issued =
            ["-CA", "authority.crt", "-CAkey", "authority.key", "-addext", "basicConstraints=CA:FALSE"];
        let names = format!("subjectAltName=DNS:{SERVER},IP:127.0.0.1,IP:::1");
        made.make(key, "server", SERVER, &[&issued[..], &["-addext", &names]].concat())?;
        made.make(Key::Ec, "client", CLIENT, &issued)?;
        chown(made.key().as_path(), Some(server.uid.as_raw()), Some(server.gid.as_raw())).context("chown")?;
        // libpq refuses a key that others may read, and the agent is not this process's user.
        let agent = child::find_user(&[crate::UNPRIVILEGED])?;
        chown(made.client_key().as_path(), Some(agent.uid.as_raw()), Some(agent.gid.as_raw()))
            .context("chown")?;
        for key in [made.key(), made.client_key()] {
            fs::set_permissions(key, Permissions::from_mode(0o600)).context("a key's mode")?;
        }
        Ok(made)
    }

    fn make(&self, key: Key, name: &str, subject: &str, more: &[&str]) -> Result<()> {
        let mut command = Command::new("openssl");
        command.args(["req", "-x509", "-nodes", "-batch", "-sha256", "-days", "2"]).args(key.arguments());
        command.args(["-subj", &format!("/CN={subject}")]).args(more).current_dir(&self.folder);
        command.args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.crt")]);
        child::succeed(&mut command, LIMIT).map(drop)
    }

    /// The authority's certificate.
    pub fn authority(&self) -> PathBuf {
        self.folder.join("authority.crt")
    }

    /// The server's certificate.
    pub fn certificate(&self) -> PathBuf {
        self.folder.join("server.crt")
    }

    /// The server's key.
    pub fn key(&self) -> PathBuf {
        self.folder.join("server.key")
    }

    /// The client's certificate.
    pub fn client_certificate(&self) -> PathBuf {
        self.folder.join("client.crt")
    }

    /// The client's key.
    pub fn client_key(&self) -> PathBuf {
        self.folder.join("client.key")
    }

    /// SHA-256 over the server's certificate, in lower-case hexadecimal.
    ///
    /// # Errors
    /// openssl cannot read it.
    pub fn fingerprint(&self) -> Result<String> {
        let mut command = Command::new("openssl");
        command.args(["x509", "-outform", "DER", "-in"]).arg(self.certificate());
        let done = child::output(&mut command, LIMIT)?;
        if !done.status.success() {
            bail!("openssl x509: {}", String::from_utf8_lossy(&done.stderr));
        }
        Ok(Sha256::digest(&done.stdout).iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_certificate_is_good_for_its_name() {
        let folder = crate::place::scratch().unwrap();
        let user = User::from_uid(nix::unistd::geteuid()).unwrap().unwrap();
        for (key, name) in [(Key::Rsa, "rsa"), (Key::Ec, "ec")] {
            let parent = folder.path().join(name);
            fs::create_dir(&parent).unwrap();
            let made = Certificates::new(&parent, key, &user).unwrap();
            let mut verify = Command::new("openssl");
            verify.args(["verify", "-verify_hostname", SERVER, "-CAfile"]).arg(made.authority());
            child::succeed(verify.arg(made.certificate()), LIMIT).unwrap();
            assert_eq!(made.fingerprint().unwrap().len(), 64);
        }
    }
}
