//! OpenSSL's client against OpenSSL's server.

use auditor::protocol::Side;

use crate::peers::{Peer, Place, Relay, Wire};
use crate::reading::{Reading, foreign};

/// What the two ends say to each other, line by line; each waits for the other's.
struct Talk {
    wire: Wire,
    client: Vec<u8>,
    server: Vec<u8>,
}

fn talk(place: &Place, server: &[&str], client: &[&str], rounds: usize, line: usize) -> Talk {
    let socket = place.socket();
    let accept = ["s_server", "-unix", &socket, "-unlink", "-cert", "server.pem", "-key", "server.key"];
    let mut server = Peer::start(place.path(), &[&accept, server].concat());
    let relay = Relay::to(place.path().join(&socket));
    let to = format!("127.0.0.1:{}", relay.port);
    let connect =
        ["s_client", "-connect", &to, "-quiet", "-keylogfile", "keys", "-servername", "db.example.com"];
    let mut client = Peer::start(place.path(), &[&connect, client].concat());
    let (mut asked, mut answered) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let text = |who: &str| {
            let mut line: String =
                format!("{who} {round} ").chars().chain("abcdefghij".chars().cycle().take(line)).collect();
            line.push('\n');
            line.into_bytes()
        };
        let question = text("question");
        client.say(&question);
        server.wait_for(&question);
        asked.extend(question);
        let answer = text("answer");
        server.say(&answer);
        client.wait_for(&answer);
        answered.extend(answer);
    }
    client.hang_up();
    drop(client);
    drop(server);
    Talk { wire: relay.finish(), client: asked, server: answered }
}

/// Everything is read, with the secrets of many others around.
fn read_all(place: &Place, talk: &Talk) -> Reading {
    let mut keyring = foreign(300);
    let own = place.secrets(1000, &talk.wire);
    assert!(!own.is_empty(), "the key log is empty");
    keyring.extend(own);
    let reading = Reading::of(&talk.wire, &keyring);
    assert_eq!(
        String::from_utf8_lossy(&reading.client),
        String::from_utf8_lossy(&talk.client),
        "{:?}",
        reading.facts
    );
    assert_eq!(
        String::from_utf8_lossy(&reading.server),
        String::from_utf8_lossy(&talk.server),
        "{:?}",
        reading.facts
    );
    assert_eq!((reading.failed, reading.opaque, &reading.violations), (0, None, &vec![]));
    assert!(reading.counted.iter().all(|counted| counted.opaque == 0));
    assert_eq!(reading.turns, [Side::Client, Side::Server].repeat(reading.turns.len() / 2));
    assert!(reading.facts.decrypted);
    reading
}

#[test]
fn each_suite_of_tls13_is_read() {
    let place = Place::new();
    for suite in [
        "TLS_AES_128_GCM_SHA256",
        "TLS_AES_256_GCM_SHA384",
        "TLS_CHACHA20_POLY1305_SHA256",
        "TLS_AES_128_CCM_SHA256",
        "TLS_AES_128_CCM_8_SHA256",
    ] {
        let talk = talk(
            &place,
            &["-tls1_3", "-quiet", "-naccept", "1", "-ciphersuites", suite],
            &["-tls1_3", "-ciphersuites", suite],
            3,
            5,
        );
        let reading = read_all(&place, &talk);
        assert_eq!(reading.facts.version.as_deref(), Some("1.3"));
        assert_eq!(reading.facts.cipher.as_deref(), Some(suite));
        assert_eq!(reading.facts.sni.as_deref(), Some("db.example.com"));
        assert_eq!(reading.facts.server.unwrap().names, ["db.example.com", "127.0.0.1"]);
    }
}

#[test]
fn each_kind_of_suite_of_tls12_is_read() {
    let place = Place::new();
    for suite in [
        "ECDHE-RSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-RSA-CHACHA20-POLY1305",
        "AES128-CCM",
        "AES256-CCM8",
        "ECDHE-RSA-AES128-SHA",
        "ECDHE-RSA-AES128-SHA256",
        "ECDHE-RSA-AES256-SHA384",
        "AES256-SHA256",
        "AES256-SHA",
    ] {
        for order in [&[][..], &["-no_etm"]] {
            let server = [&["-tls1_2", "-quiet", "-naccept", "1", "-cipher", suite], order].concat();
            let talk = talk(&place, &server, &["-tls1_2", "-cipher", suite], 3, 5);
            let reading = read_all(&place, &talk);
            assert_eq!(reading.facts.version.as_deref(), Some("1.2"));
            assert!(reading.facts.cipher.is_some_and(|name| name.starts_with("TLS_")));
            assert_eq!(reading.facts.server.unwrap().subject, "CN=db.example.com, O=Example");
        }
    }
}
