//! Passwords are in no record, whatever becomes of their command.

use super::script::*;
use crate::clock::Boottime;
use crate::protocol::redis::Redis;
use crate::protocol::tests::events::Event;
use crate::protocol::{Dissector, Observation, Side};

#[test]
fn passwords_are_not_kept() {
    const SECRET: &str = "hunter2";
    for words in [
        &["AUTH", SECRET][..],
        &["auth", "bob", SECRET],
        &["AUTH", "bob", SECRET, SECRET],
        &["HELLO", "3", "AUTH", "bob", SECRET],
        &["HELLO", "3", "SETNAME", "x", "AUTH", "bob", SECRET],
        &["HELLO", "3", "SETNAME", "AUTH", "AUTH", "bob", SECRET],
        &["HELLO", "3", "SETNAME", "keys", "AUTH", "bob", SECRET],
        &["HELLO", "3", "SETNAME", "AUTH", "bob", SECRET],
        &["CONFIG", "SET", "requirepass", SECRET],
        &["config", "set", "maxmemory", "1", "masterauth", SECRET],
        &["ACL", "SETUSER", "bob", "on", ">hunter2", "<hunter2", "#hunter2", "!hunter2", "+@all"],
        &["MIGRATE", "h", "1", "k", "0", "10", "AUTH", SECRET],
        &["MIGRATE", "h", "1", "", "0", "10", "COPY", "AUTH2", "bob", SECRET, "KEYS", "a"],
        &["SENTINEL", "SET", "m", "auth-pass", SECRET],
        &["SENTINEL", "CONFIG", "SET", "sentinel-pass", SECRET],
    ] {
        let error = format!("-ERR syntax error at '{SECRET}'\r\n");
        for text in [command(words), words.join(" ").replace("  ", " \"\" ") + "\r\n"] {
            let said = [client(text), server(&error)];
            let told = told(&said);
            assert_eq!(told.len(), 1);
            assert!(!told[0].contains(SECRET) && told[0].contains("(redacted)"), "{told:?}");
        }
    }
    let said = [client(command(&["ACL", "SETUSER", "bob", ">x", "~k*"])), server("+OK\r\n")];
    assert_eq!(told(&said), ["ACL SETUSER bob >(redacted) ~k* => +OK"]);
    let said =
        [client(command(&["MIGRATE", "h", "1", "", "0", "10", "KEYS", "AUTH", "x"])), server("+OK\r\n")];
    assert_eq!(told(&said), [r#"MIGRATE h 1 "" 0 10 KEYS AUTH x => +OK"#]);
}

#[test]
fn what_is_left_of_a_command_has_no_password() {
    const SECRET: &str = "hunter2";
    for (words, name) in [(&["HELLO", "3", "AUTH", "bob", SECRET][..], "HELLO"), (&["AUTH", SECRET], "AUTH")]
    {
        let bytes = command(words);
        let argument = bytes.find(&format!("\r\n{name}")).unwrap() + 3;
        for cut in argument..bytes.len() {
            let mut redis = Redis::new(LIMITS);
            let mut out = Vec::new();
            redis.bytes(Side::Client, Boottime(0), &bytes.as_bytes()[..cut], &mut out);
            redis.spare(Boottime(1), &mut out);
            redis.bytes(Side::Client, Boottime(2), &bytes.as_bytes()[cut..], &mut out);
            redis.close(Boottime(3), &mut out);
            let [Observation::Statement(statement)] = &out[..] else { panic!("{out:?}") };
            let text = String::from_utf8_lossy(&statement.text);
            assert!(!text.contains("hunter") && statement.incomplete, "{cut}: {text}");
        }
        // One byte of it is lost.
        for cut in argument..bytes.len() - 1 {
            let said = [
                client(&bytes[..cut]),
                Event::Hole(Side::Client, 1),
                client(&bytes[cut + 1..]),
                server("-ERR what is 'hunter2'\r\n"),
            ];
            for found in told(&said) {
                assert!(!found.contains("hunter"), "{cut}: {found}");
            }
        }
    }
}
