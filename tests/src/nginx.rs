//! An nginx that lives as long as a value: own folder, own ports on 127.0.0.1, own unix socket.
//!
//! It logs each request as a line of JSON, which is the oracle of the tests of HTTP: what the server says it was asked, independent
//! of what the auditor saw.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::certificates::{Certificates, Key};
use crate::child::{self, Child};
use crate::place;
use crate::postgres::free_port;

const PROGRAM: &str = "/usr/sbin/nginx";
/// What a start, or the log of what was asked, may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// Tries to find ports that nobody takes between our look and the server's start.
const TRIES: usize = 5;
/// Bytes of the long answer.
const LONG: usize = 300_000;

/// A running server.
#[derive(Debug)]
pub struct Nginx {
    // Dropped first: the server must have ended before its folder goes.
    _server: Child,
    folder: TempDir,
    certificates: Certificates,
    ports: Ports,
}

/// Where it listens.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// HTTP/1 in the clear.
    pub plain: u16,
    /// HTTP/2 in the clear, by prior knowledge.
    pub two: u16,
    /// Both under TLS, as the client wants.
    pub tls: u16,
}

impl Nginx {
    /// Starts it.
    ///
    /// # Errors
    /// It is not installed or does not start; what it said is part of the error.
    pub fn start() -> Result<Self> {
        if !Path::new(PROGRAM).is_file() {
            bail!("{PROGRAM} is not there: run `cargo xtask setup`");
        }
        let user = child::find_user(&["www-data", crate::UNPRIVILEGED])?;
        let folder = place::scratch()?;
        let certificates = Certificates::new(folder.path(), Key::Ec, &user)?;
        for name in ["log", "www", "socket"] {
            let path = folder.path().join(name);
            fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
            chown(&path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).context("chown")?;
        }
        let files = [("short.txt", "short\n".to_owned()), ("long.txt", "0123456789".repeat(LONG / 10))];
        for (name, content) in files {
            fs::write(folder.path().join("www").join(name), content).context("a file to serve")?;
        }
        for _ in 0..TRIES {
            let ports = Ports { plain: free_port()?, two: free_port()?, tls: free_port()? };
            let sink = free_port()?;
            let path = folder.path().join("nginx.conf");
            fs::write(&path, configuration(folder.path(), &certificates, ports, sink))
                .context("nginx.conf")?;
            let said = fs::File::create(folder.path().join("said.log")).context("said.log")?;
            let mut command = Command::new(PROGRAM);
            command.arg("-c").arg(&path).arg("-e").arg(folder.path().join("log/error.log"));
            command.current_dir(folder.path()).stdin(Stdio::null());
            command.stdout(said.try_clone().context("said.log")?).stderr(said);
            let mut server = Child::start(child::as_user(&mut command, &user), Signal::SIGTERM)?;
            let connects = |port| TcpStream::connect(("127.0.0.1", port)).is_ok();
            if server.comes_up(LIMIT, || Ok([ports.plain, ports.two, ports.tls].into_iter().all(connects)))? {
                return Ok(Self { _server: server, folder, certificates, ports });
            }
        }
        let said = |name| fs::read_to_string(folder.path().join(name)).unwrap_or_default();
        bail!("nginx did not start: {}{}", said("said.log"), said("log/error.log"))
    }

    /// Where it listens.
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// Its unix socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket/nginx.sock")
    }

    /// Its certificate and the authority's.
    pub fn certificates(&self) -> &Certificates {
        &self.certificates
    }

    /// What it was asked, in the order in which it was done with it: at least so many requests.
    ///
    /// # Errors
    /// The log cannot be read, or there are not as many.
    pub fn log(&self, least: usize) -> Result<Vec<Value>> {
        let path = self.folder.path().join("log/access.log");
        let start = Instant::now();
        loop {
            let text = fs::read_to_string(&path).unwrap_or_default();
            // The last line may be half written.
            let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
            let rows: Vec<Value> = whole
                .lines()
                .map(|line| serde_json::from_str(line).with_context(|| format!("nginx's log: {line}")))
                .collect::<Result<_>>()?;
            if rows.len() >= least {
                return Ok(rows);
            }
            if start.elapsed() > LIMIT {
                bail!("nginx has logged {} requests, not {least}", rows.len());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn configuration(folder: &Path, certificates: &Certificates, ports: Ports, sink: u16) -> String {
    let folder = folder.display();
    let (certificate, key) = (certificates.certificate(), certificates.key());
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("{name}_temp_path {folder}/log/{name};\n"))
        .collect();
    let fields = [
        ("port", "$remote_port"),
        ("server", "$server_port"),
        ("number", "$connection_requests"),
        ("method", "$request_method"),
        ("uri", "$request_uri"),
        ("status", "$status"),
        ("sent", "$bytes_sent"),
        ("body", "$body_bytes_sent"),
        ("length", "$request_length"),
        ("content", "$content_length"),
        ("type", "$content_type"),
        ("protocol", "$server_protocol"),
        ("host", "$http_host"),
        ("agent", "$http_user_agent"),
        ("encoding", "$sent_http_transfer_encoding"),
        ("answered", "$sent_http_content_type"),
    ];
    let fields: Vec<String> =
        fields.iter().map(|(name, variable)| format!("\"{name}\":\"{variable}\"")).collect();
    let Ports { plain, two, tls } = ports;
    format!(
        "worker_processes 1;\ndaemon off;\npid {folder}/log/nginx.pid;\nevents {{ worker_connections 256; }}\nhttp {{\n{temporary}\
         log_format fields escape=json '{{{}}}';\nkeepalive_requests 100000;\nclient_max_body_size 64m;\ngzip on;\n\
         gzip_min_length 1000;\ntypes {{ text/plain txt; }}\n\
         server {{ access_log off; listen 127.0.0.1:{sink}; location / {{ return 200 \"taken\\n\"; }} }}\n\
         server {{\naccess_log {folder}/log/access.log fields;\nlisten 127.0.0.1:{plain};\nlisten 127.0.0.1:{two} http2;\n\
         listen 127.0.0.1:{tls} ssl http2;\nlisten unix:{folder}/socket/nginx.sock;\nssl_certificate {};\n\
         ssl_certificate_key {};\nroot {folder}/www;\nlocation /take {{ proxy_pass http://127.0.0.1:{sink}/; }}\n\
         location /gone {{ return 410 \"gone\\n\"; }}\nlocation /away {{ return 302 /short.txt; }}\n\
         location /nothing {{ return 204; }}\n}}\n}}\n",
        fields.join(","),
        certificate.display(),
        key.display(),
    )
}
