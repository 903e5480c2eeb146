//! A client of PostgreSQL over TLS with rustls: opens all connections, then says something else on each of them in turn.
//!
//! HOST PORT AUTHORITY CONNECTIONS STATEMENTS TAG. Just enough of the protocol to ask and to read the answer: a driver would bring
//! an asynchronous runtime along, which takes longer to build than all that is wanted here.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

type Connection = StreamOwned<ClientConnection, TcpStream>;

/// SSLRequest, and version 3.0 of the protocol.
const TLS: i32 = 80_877_103;
const VERSION: i32 = 3 << 16;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [host, port, authority, connections, statements, tag] = words.as_slice() else {
        bail!("HOST PORT AUTHORITY CONNECTIONS STATEMENTS TAG");
    };
    eprintln!("pid {}", std::process::id());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(authority)? {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
    let (port, statements): (u16, u32) = (port.parse()?, statements.parse()?);
    let mut open = Vec::new();
    for _ in 0..connections.parse()? {
        open.push(connect(host, port, &config)?);
    }
    for count in 0..statements {
        for (number, connection) in open.iter_mut().enumerate() {
            let text = format!("select '{tag} {number}/{count} ☃'\0");
            send(connection, Some(b'Q'), text.as_bytes())?;
            until_ready(connection)?;
        }
    }
    for mut connection in open {
        send(&mut connection, Some(b'X'), &[])?;
        connection.conn.send_close_notify();
        connection.flush()?;
    }
    Ok(())
}

fn connect(host: &str, port: u16, config: &Arc<ClientConfig>) -> Result<Connection> {
    let mut socket = TcpStream::connect((host, port))?;
    send(&mut socket, None, &TLS.to_be_bytes())?;
    let mut answer = [0];
    socket.read_exact(&mut answer)?;
    if answer != *b"S" {
        bail!("the server does not speak TLS");
    }
    let session = ClientConnection::new(Arc::clone(config), ServerName::try_from(host.to_owned())?)?;
    let mut connection = StreamOwned::new(session, socket);
    let startup = [&VERSION.to_be_bytes()[..], b"user\0postgres\0database\0postgres\0\0"].concat();
    send(&mut connection, None, &startup)?;
    until_ready(&mut connection)?;
    Ok(connection)
}

/// A message: its kind, which the first ones do not have, its length with the length itself, and the rest.
fn send(to: &mut impl Write, kind: Option<u8>, rest: &[u8]) -> Result<()> {
    let length = u32::try_from(rest.len() + 4)?.to_be_bytes();
    let message: Vec<u8> = kind.into_iter().chain(length).chain(rest.iter().copied()).collect();
    to.write_all(&message)?;
    to.flush().context("cannot send")
}

/// Reads messages up to ReadyForQuery.
fn until_ready(from: &mut impl Read) -> Result<()> {
    loop {
        let mut head = [0; 5];
        from.read_exact(&mut head)?;
        let [kind, length @ ..] = head;
        let mut rest = vec![0; (u32::from_be_bytes(length) as usize).saturating_sub(4)];
        from.read_exact(&mut rest)?;
        match kind {
            b'Z' => return Ok(()),
            b'E' => bail!("{}", String::from_utf8_lossy(&rest)),
            _ => {}
        }
    }
}
