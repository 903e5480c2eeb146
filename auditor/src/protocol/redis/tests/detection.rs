//! How a client of Redis begins.

use crate::protocol::redis::detect;
use crate::protocol::{Detection, First, Protocol};

#[test]
fn it_is_told_by_its_first_bytes() {
    let all = |text: &str| crate::protocol::detect(First { client: text.as_bytes(), server: &[] });
    let long = format!("set k {}", "x".repeat(2000));
    let blank = "\r\n".repeat(300) + "PING\r\n";
    for yes in [
        "*1\r\n$4\r\nPING\r\n",
        "*3\r\n$",
        "*3\rx$",
        "*0\r\n*-1\r\n\r\n*1\r\n$",
        "PING\r\n",
        "\r\n \r\n  PING\r\n",
        "auth x\r\n",
        "GET /a\r\n",
        "set k v\n",
        "UNLINK k\r\n",
        "\"unlink\" k\r\n",
        "un'link' k\r\n",
        &long,
        &blank,
    ] {
        assert_eq!(all(yes), Detection::Yes(Protocol::Redis), "{yes}");
    }
    for more in ["", "*", "*12", "*1\r", "*1\r\n", "*0\r\n", "*-", "\r\n", " ", "P", "PIN", "PING", "PING\r"]
    {
        assert_eq!(detect(more.as_bytes()), Detection::Incomplete, "{more}");
    }
    for no in [
        "*a",
        "*1\r\n:",
        "GET / HTTP/1.1\r\n",
        "EHLO x\r\n",
        "PINGS\r\n",
        "\x16\x03\x01",
        "PUT / HTTP/1.1\r\n",
    ] {
        assert_eq!(detect(no.as_bytes()), Detection::No, "{no}");
    }
}
