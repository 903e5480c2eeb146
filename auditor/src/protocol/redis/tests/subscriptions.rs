//! Channels, and what comes of them without being asked for.

use super::script::*;

#[test]
fn messages_belong_to_no_command() {
    let said = [
        client(command(&["SUBSCRIBE", "a", "b"])),
        server("*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n*3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n"),
        server("*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\nhi\r\n"),
        client(command(&["PING"])),
        server("*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\nhi\r\n*2\r\n$4\r\npong\r\n$0\r\n\r\n"),
        client(command(&["UNSUBSCRIBE"])),
        server("*3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:1\r\n*3\r\n$11\r\nunsubscribe\r\n$1\r\nb\r\n:0\r\n"),
        client(command(&["GET", "x"])),
        server("$-1\r\n"),
    ];
    assert_eq!(told(&said), ["SUBSCRIBE a b => *3", "PING => *2", "UNSUBSCRIBE => *3", "GET x => $-1"]);
    // A list that looks like a message is a reply all the same.
    let said = [
        client(command(&["LRANGE", "l", "0", "-1"])),
        server("*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\nhi\r\n"),
    ];
    assert_eq!(told(&said), ["LRANGE l 0 -1 => *3"]);
}

#[test]
fn unsubscribing_from_everything_has_as_many_answers_as_there_are_channels() {
    let confirmation = |word: &str, channel: &str, left: usize| {
        format!("*3\r\n${}\r\n{word}\r\n${}\r\n{channel}\r\n:{left}\r\n", word.len(), channel.len())
    };
    let message = "*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\nhi\r\n";
    let said = [
        client([command(&["SUBSCRIBE", "a", "b"]), command(&["PSUBSCRIBE", "p"])].concat()),
        server([confirmation("subscribe", "a", 1), confirmation("subscribe", "b", 2)].concat()),
        server([confirmation("psubscribe", "p", 3), message.to_owned()].concat()),
        client([command(&["UNSUBSCRIBE"]), command(&["PUNSUBSCRIBE"]), command(&["UNSUBSCRIBE"])].concat()),
        client(command(&["LRANGE", "l", "0", "-1"])),
        server([confirmation("unsubscribe", "a", 2), confirmation("unsubscribe", "b", 1)].concat()),
        server([confirmation("punsubscribe", "p", 0), confirmation("unsubscribe", "", 0)].concat()),
        server(message),
    ];
    assert_eq!(
        told(&said),
        [
            "SUBSCRIBE a b => *3",
            "PSUBSCRIBE p => *3",
            "UNSUBSCRIBE => *3",
            "PUNSUBSCRIBE => *3",
            "UNSUBSCRIBE => *3",
            "LRANGE l 0 -1 => *3"
        ]
    );
}
