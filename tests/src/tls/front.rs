//! A server that ends TLS and says what it agreed on: for what PostgreSQL 15 does not do (resumption, TLS from the first byte,
//! another curve than the client's guess), and for HTTP.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::standard_names;
use crate::certificates::Certificates;
use crate::child::Child;
use crate::clients;
use crate::postgres::log::Entry;

const LIMIT: Duration = Duration::from_secs(10);
const SCRIPT: &str = include_str!("../../clients/tls_front.py");

/// A running one.
#[derive(Debug)]
pub struct Front {
    _child: Child,
    port: u16,
    told: Arc<Mutex<Vec<Value>>>,
}

/// What it agreed on with a client.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Handshake {
    /// The client's port.
    pub client: u16,
    /// Its own port towards PostgreSQL.
    pub behind: Option<u16>,
    /// `1.2` or `1.3`.
    pub version: String,
    /// IANA's name of the suite.
    pub cipher: String,
    /// Whether an earlier session was resumed.
    pub resumed: bool,
    /// The name that it was asked for.
    pub sni: Option<String>,
    /// The protocol that was chosen.
    pub alpn: Option<String>,
    /// The record with the client's hello.
    pub hello: Vec<u8>,
}

impl Front {
    /// Starts it in front of PostgreSQL's `backend`, or of nothing but a little HTTP.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(
        folder: &Path,
        certificates: &Certificates,
        backend: Option<u16>,
        options: &Value,
    ) -> Result<Self> {
        let script = clients::write(folder, "tls_front.py", SCRIPT)?;
        let mut command = Command::new("/usr/bin/python3");
        command.arg("-B").arg(script).arg(certificates.certificate()).arg(certificates.key());
        command.arg(backend.map_or("http".to_owned(), |port| port.to_string())).arg(options.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = Child::start(&mut command, Signal::SIGKILL)?;
        let mut lines = BufReader::new(child.take_stdout().context("stdout")?).lines();
        let port = lines.next().context("the TLS server has ended")??.parse().context("its port")?;
        let told = Arc::new(Mutex::new(Vec::new()));
        let telling = Arc::clone(&told);
        thread::spawn(move || {
            for value in lines.map_while(Result::ok).filter_map(|line| serde_json::from_str(&line).ok()) {
                telling.lock().unwrap_or_else(PoisonError::into_inner).push(value);
            }
        });
        Ok(Self { _child: child, port, told })
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its handshakes, once there are `count`.
    ///
    /// # Errors
    /// There are fewer, or more.
    pub fn handshakes(&self, count: usize) -> Result<Vec<Handshake>> {
        let start = Instant::now();
        let told = loop {
            let told = self.told.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if told.len() >= count || start.elapsed() > LIMIT {
                break told;
            }
            thread::sleep(Duration::from_millis(10));
        };
        if told.len() != count {
            bail!("{} handshakes, not {count}: {told:?}", told.len());
        }
        let names = standard_names()?;
        told.iter().map(|told| handshake(told, &names).with_context(|| format!("{told}"))).collect()
    }
}

fn handshake(told: &Value, names: &std::collections::BTreeMap<String, String>) -> Option<Handshake> {
    let text = |name: &str| told[name].as_str().map(str::to_owned);
    let port = |name: &str| told[name].as_u64().and_then(|port| u16::try_from(port).ok());
    let cipher = text("cipher")?;
    let hello = told["hello"].as_str()?.as_bytes().chunks(2);
    let hello = hello.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    Some(Handshake {
        client: port("client")?,
        behind: port("behind"),
        version: text("version")?,
        cipher: names.get(&cipher).cloned().unwrap_or(cipher),
        resumed: told["resumed"].as_bool()?,
        sni: text("sni"),
        alpn: text("alpn"),
        hello: hello.collect::<Option<_>>()?,
    })
}

/// PostgreSQL's log with the clients that were in front of the front; what others said is left out.
pub fn behind(log: Vec<Entry>, handshakes: &[Handshake]) -> Vec<Entry> {
    let clients: HashMap<u16, u16> =
        handshakes.iter().filter_map(|shake| Some((shake.behind?, shake.client))).collect();
    let told = log.into_iter().filter_map(|mut entry| {
        let client = clients.get(&entry.client?.port())?;
        entry.client = Some(SocketAddr::from(([127, 0, 0, 1], *client)));
        Some(entry)
    });
    told.collect()
}
