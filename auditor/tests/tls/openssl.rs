//! OpenSSL's client against OpenSSL's server: versions, suites, and every way a handshake can go.

use crate::peers::Place;
use crate::reading::{Reading, foreign};
use crate::talk::{CERTIFICATE, EARLY, LINES, Step, read_all, same, talk, talks};

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
        let words = ["-tls1_3", "-ciphersuites", suite];
        let reading = read_all(&place, &talk(&place, &words, &words, LINES));
        assert_eq!(reading.facts.version.as_deref(), Some("1.3"));
        assert_eq!(reading.facts.cipher.as_deref(), Some(suite));
        assert_eq!(reading.facts.sni.as_deref(), Some("db.example.com"));
        assert_eq!(reading.facts.server.unwrap().names, ["db.example.com", "127.0.0.1"]);
        assert!(reading.facts.ja4.unwrap().starts_with("t13d"));
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
            // Without the extension: the secret is the older kind.
            let words = [&["-tls1_2", "-cipher", suite], order].concat();
            let reading = read_all(&place, &talk(&place, &words, &words[..3], LINES));
            assert_eq!(reading.facts.version.as_deref(), Some("1.2"));
            assert!(reading.facts.cipher.is_some_and(|name| name.starts_with("TLS_")));
            assert_eq!(reading.facts.server.unwrap().subject, "CN=db.example.com, O=Example");
        }
    }
}

#[test]
fn both_ends_certificates_are_told() {
    let place = Place::new();
    for version in ["-tls1_2", "-tls1_3"] {
        let server = [version, "-Verify", "1", "-verify_quiet"];
        let client = [version, "-cert", "client.pem", "-key", "client.key"];
        let reading = read_all(&place, &talk(&place, &server, &client, LINES));
        for (read, file) in [(&reading.facts.server, "server.pem"), (&reading.facts.client, "client.pem")] {
            let read = read.as_ref().unwrap();
            let print = place.openssl(&["x509", "-in", file, "-noout", "-fingerprint", "-sha256", "-serial"]);
            let print = String::from_utf8(print.stdout).unwrap().replace(':', "").to_lowercase();
            assert!(print.contains(&read.sha256), "{print} {read:?}");
            assert!(print.contains(read.serial.trim_start_matches("00")), "{print} {read:?}");
            assert_eq!(read.subject, read.issuer);
            assert_eq!(read.not_after.unwrap() - read.not_before.unwrap(), 2 * 24 * 60 * 60);
        }
        assert_eq!(reading.facts.client.unwrap().names, ["email:agent@example.com"]);
    }
}

#[test]
fn resumed_sessions_are_read() {
    let place = Place::new();
    for (version, more) in
        [("-tls1_2", &[][..]), ("-tls1_2", &["-no_ticket"]), ("-tls1_3", &[]), ("-tls1_3", &["-no_ticket"])]
    {
        let server = [&CERTIFICATE[..], &[version], more].concat();
        let first = [version, "-sess_out", "session"];
        let second = [version, "-sess_in", "session"];
        let talks = talks(&place, &server, &[(&first, b"", LINES), (&second, b"", LINES)]);
        let full = read_all(&place, &talks[0]);
        assert!(!full.facts.resumed && full.facts.server.is_some());
        let resumed = read_all(&place, &talks[1]);
        assert!(resumed.facts.resumed && resumed.facts.server.is_none(), "{:?}", resumed.facts);
    }
}

#[test]
fn early_data_is_read_where_the_server_takes_it() {
    let place = Place::new();
    std::fs::write(place.path().join("early"), EARLY).unwrap();
    let first = ["-tls1_3", "-sess_out", "session"];
    let second = ["-tls1_3", "-sess_in", "session", "-early_data", "early"];
    let server = [&CERTIFICATE[..], &["-tls1_3", "-early_data"]].concat();
    let taken = talks(&place, &server, &[(&first, b"", LINES), (&second, EARLY, LINES)]);
    let reading = read_all(&place, &taken[1]);
    assert_eq!(reading.facts.early_data, Some("accepted"));
}

#[test]
fn early_data_that_the_server_passes_over_is_opaque() {
    let place = Place::new();
    std::fs::write(place.path().join("early"), EARLY).unwrap();
    let first = ["-tls1_3", "-sess_out", "session"];
    // A server that knows nothing of the session's key, and one that asks for another hello.
    for more in [&[][..], &["-groups", "P-384"]] {
        let server = [&CERTIFICATE[..], &["-tls1_3", "-early_data"]].concat();
        talks(&place, &server, &[(&first, b"", LINES)]);
        let second = ["-tls1_3", "-sess_in", "session", "-early_data", "early"];
        let server = [&server, more].concat();
        let passed = talks(&place, &server, &[(&second, b"", LINES)]).remove(0);
        let mut keyring = foreign(300);
        place.secrets().offer(&mut keyring);
        let reading = Reading::of(&passed.wire, &keyring);
        assert_eq!((reading.failed, reading.opaque, &reading.violations), (0, None, &vec![]), "{more:?}");
        same(&reading, &passed);
        assert_eq!(reading.facts.early_data, Some("rejected"));
        // One record with its type and tag.
        assert_eq!(reading.counted.map(|counted| counted.opaque), [5 + EARLY.len() as u64 + 17, 0]);
    }
}

#[test]
fn a_second_hello_is_read() {
    let place = Place::new();
    let server = ["-tls1_3", "-groups", "P-384"];
    let reading = read_all(&place, &talk(&place, &server, &["-tls1_3", "-groups", "X25519:P-384"], LINES));
    assert!(reading.facts.server.is_some());
    let lone = ["-tls1_3", "-no_middlebox"];
    read_all(
        &place,
        &talk(
            &place,
            &[&server[..], &["-no_middlebox"]].concat(),
            &[&lone[..], &["-groups", "X25519:P-384"]].concat(),
            LINES,
        ),
    );
}

#[test]
fn a_key_that_both_have_is_enough() {
    let place = Place::new();
    let key = ["-psk", "0102030405060708090a0b0c0d0e0f10", "-psk_identity", "agent"];
    let cases = [
        (&["-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256"][..], &["-allow_no_dhe_kex"][..]),
        (&["-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256"], &[]),
        (&["-tls1_2", "-cipher", "PSK-AES128-GCM-SHA256"], &[]),
        (&["-tls1_2", "-cipher", "DHE-PSK-AES256-CBC-SHA384"], &[]),
    ];
    for (words, more) in cases {
        let words = [words, more, &key].concat();
        let server = [&words[..], &["-nocert"]].concat();
        let talk = talks(&place, &server, &[(&words, b"", LINES)]).remove(0);
        let reading = read_all(&place, &talk);
        assert_eq!(reading.facts.server, None);
        assert_eq!(reading.facts.resumed, reading.facts.version.as_deref() == Some("1.3"));
    }
}

#[test]
fn key_updates_are_followed() {
    let place = Place::new();
    let one = Step::Line(10);
    // K asks for the other direction's as well.
    let steps = [one, Step::Command("K"), one, one, Step::Command("k"), one, Step::Command("K"), one];
    for suite in ["TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"] {
        let words = ["-tls1_3", "-ciphersuites", suite];
        let reading = read_all(&place, &talk(&place, &words, &words, &steps));
        assert_eq!(reading.bound.len(), 4, "updates are derived");
    }
}

#[test]
fn renegotiations_are_followed() {
    let place = Place::new();
    let one = Step::Line(10);
    for suite in ["ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-RSA-AES256-SHA384"] {
        let server = ["-tls1_2", "-client_renegotiation", "-cipher", suite];
        let steps = [one, Step::Command("R"), one, Step::Command("R"), one];
        let reading = read_all(&place, &talk(&place, &server, &["-tls1_2", "-cipher", suite], &steps));
        assert!(reading.bound.len() >= 6, "{:?}", reading.bound);
    }
}

#[test]
fn records_of_any_size_are_read() {
    let place = Place::new();
    let steps = [Step::Line(40_000), Step::Line(1), Step::Line(100_000)];
    for words in [
        &["-tls1_3"][..],
        &["-tls1_3", "-record_padding", "512"],
        &["-tls1_3", "-max_send_frag", "512", "-split_send_frag", "512"],
        &["-tls1_2", "-cipher", "ECDHE-RSA-AES256-GCM-SHA384"],
        &["-tls1_2", "-cipher", "ECDHE-RSA-AES256-SHA", "-max_send_frag", "512", "-split_send_frag", "512"],
    ] {
        read_all(&place, &talk(&place, words, words, &steps));
    }
}
