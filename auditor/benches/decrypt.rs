//! Decryption on one core: GiB of plaintext a second, by suite and size of records.
//!
//! OpenSSL's server sends to OpenSSL's client through a relay; what passed is read again and again by one connection each
//! time, from memory, in segments as a loopback interface carries them. CPU time of the thread, so that a busy machine
//! disturbs it little.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code, reason = "a benchmark panics")]

#[path = "../tests/tls/peers.rs"]
mod peers;

use std::thread;
use std::time::Duration;

use auditor::clock::Boottime;
use auditor::protocol::Side;
use auditor::tls::{Connection, Event};
use nix::time::{ClockId, clock_gettime};

use crate::peers::{Peer, Place, Relay, Wire};

const BYTES: usize = 64 << 20;
const PASSES: usize = 7;

fn record(place: &Place, words: &[&str]) -> Wire {
    let socket = place.socket();
    let accept = ["s_server", "-quiet", "-unix", &socket, "-cert", "server.pem", "-key", "server.key"];
    let mut server = Peer::start(place.path(), &[&accept, words].concat());
    let relay = Relay::to(place.path().join(&socket));
    let to = format!("127.0.0.1:{}", relay.port);
    let connect = ["s_client", "-connect", &to, "-brief", "-keylogfile", "keys"];
    let mut client = Peer::start(place.path(), &[&connect, words].concat());
    // A line of the client's: the server reads its input once a connection is there.
    client.say(b"send\n");
    server.wait_for(b"send\n");
    let mut line = vec![b'.'; 1 << 20];
    line[(1 << 20) - 1] = b'\n';
    for _ in 0..BYTES >> 20 {
        server.say(&line);
    }
    while relay.bytes(Side::Server) < BYTES as u64 {
        thread::sleep(Duration::from_millis(20));
    }
    drop(server);
    drop(client);
    relay.finish()
}

fn seconds() -> f64 {
    Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap()).as_secs_f64()
}

fn main() {
    println!("{:<34}{:>8}{:>9}{:>10}{:>10}", "suite", "record", "segment", "GiB/s", "ns/record");
    for (version, option, suite) in [
        ("-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256"),
        ("-tls1_3", "-ciphersuites", "TLS_AES_256_GCM_SHA384"),
        ("-tls1_3", "-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"),
        ("-tls1_3", "-ciphersuites", "TLS_AES_128_CCM_SHA256"),
        ("-tls1_2", "-cipher", "ECDHE-RSA-AES256-GCM-SHA384"),
        ("-tls1_2", "-cipher", "ECDHE-RSA-AES128-SHA"),
        ("-tls1_2", "-cipher", "ECDHE-RSA-AES256-SHA384"),
    ] {
        for size in ["16384", "1024"] {
            let place = Place::new();
            let words = [version, option, suite, "-max_send_frag", size, "-split_send_frag", size];
            let wire = record(&place, &words);
            let keyring = place.secrets().alone();
            for segment in [65_483, 1448] {
                let pieces: Vec<(Side, &[u8])> = wire
                    .0
                    .iter()
                    .flat_map(|(side, bytes)| bytes.chunks(segment).map(|piece| (*side, piece)))
                    .collect();
                let mut speeds: Vec<(f64, f64)> = (0..PASSES)
                    .map(|_| {
                        let (mut read, mut records) = (0_u64, 0_u64);
                        let mut connection = Connection::new();
                        let begin = seconds();
                        for (side, bytes) in &pieces {
                            connection.bytes(*side, Boottime(0), bytes, &keyring, &mut |event| {
                                if let Event::Plaintext { bytes, .. } = event {
                                    read += bytes.len() as u64;
                                    records += 1;
                                }
                            });
                        }
                        let spent = seconds() - begin;
                        // The last records are under way when the server is ended.
                        assert!(read >= BYTES as u64 / 10 * 9 && connection.opaque().is_none());
                        (read as f64 / spent / f64::from(1 << 30), spent * 1e9 / records as f64)
                    })
                    .collect();
                speeds.sort_by(|one, other| one.0.total_cmp(&other.0));
                let (speed, each) = speeds[PASSES / 2];
                println!("{suite:<34}{size:>8}{segment:>9}{speed:>10.2}{each:>10.0}");
            }
        }
    }
}
