//! What Redis' commands mean: by a table of the server's own (`COMMAND` of Redis 7), which says what each reads and writes and where its
//! keys are, and by another one of those that do more than that.
//!
//! The verb is the command in lower case, with its subcommand where it has one (`config set`, and `config` beside it). Objects are
//! keys. A command that is in no table, one of a module's say, is unclassified.

#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock};

use super::{Classes, Command, Meaning, fingerprint_of, unclassified};
use crate::protocol::redis::split;

/// Keys of one command that are told; there may be a million of them. `more-keys` says that there were.
const MAX_KEYS: usize = 256;

#[derive(Clone, Copy, Debug)]
struct Known {
    classes: Classes,
    first: usize,
    last: isize,
    step: usize,
}

static COMMANDS: LazyLock<HashMap<&str, Known>> = LazyLock::new(|| {
    include_str!("redis_commands.txt")
        .lines()
        .filter_map(|line| {
            let mut fields = line.split('\t');
            let name = fields.next()?;
            let mut classes = more(name);
            for class in fields.next()?.split(',') {
                classes.insert(match class {
                    "reads" => Classes::READS,
                    "writes" => Classes::WRITES,
                    _ => Classes::NONE,
                });
            }
            let (first, last) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
            Some((name, Known { classes, first, last, step: fields.next()?.parse().ok()? }))
        })
        .collect()
});

/// Commands that do nothing but by their subcommands.
static CONTAINERS: LazyLock<HashSet<&str>> =
    LazyLock::new(|| COMMANDS.keys().filter_map(|name| Some(name.split_once(' ')?.0)).collect());

/// Names of commands, subcommands apart.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    COMMANDS.keys().copied().filter(|name| !name.contains(' '))
}

/// What the server's table does not say.
fn more(name: &str) -> Classes {
    match name {
        "eval" | "eval_ro" | "evalsha" | "evalsha_ro" | "fcall" | "fcall_ro" | "script load"
        | "script debug" | "function load" | "function restore" | "debug" => Classes::EXECUTES,
        "module load" | "module loadex" => Classes::EXECUTES | Classes::READS_FILES,
        "module unload" | "function delete" | "function flush" | "script flush" => Classes::DEFINES,
        "config set" | "config rewrite" => Classes::SETTINGS | Classes::WRITES_FILES,
        "config resetstat" | "latency reset" | "slowlog reset" | "client no-evict" | "client no-touch"
        | "client tracking" => Classes::SETTINGS,
        "save" | "bgsave" | "bgrewriteaof" | "acl save" => Classes::WRITES_FILES,
        "acl setuser" | "acl deluser" => Classes::GRANTS,
        "acl load" => Classes::GRANTS | Classes::READS_FILES,
        "acl list" | "acl getuser" | "acl users" | "acl log" | "config get" | "monitor" | "client list"
        | "slowlog get" | "info" | "subscribe" | "psubscribe" | "ssubscribe" => Classes::READS,
        "auth" | "hello" | "reset" => Classes::IDENTITY,
        "replicaof" | "slaveof" => Classes::CONNECTS | Classes::SETTINGS | Classes::WRITES,
        "migrate" => Classes::CONNECTS,
        "sync" | "psync" => Classes::READS | Classes::EXECUTES,
        "shutdown" | "client kill" | "script kill" | "function kill" | "client unblock" => {
            Classes::ENDS_SESSIONS
        }
        "client pause" => Classes::LOCKS,
        "failover" => Classes::SETTINGS | Classes::ENDS_SESSIONS,
        "publish" | "spublish" => Classes::WRITES,
        name if name.starts_with("cluster ") => cluster(name),
        _ => Classes::NONE,
    }
}

fn cluster(name: &str) -> Classes {
    let asks = [
        "info",
        "nodes",
        "slots",
        "shards",
        "keyslot",
        "countkeysinslot",
        "getkeysinslot",
        "myid",
        "myshardid",
        "links",
        "help",
    ];
    if asks.iter().any(|word| name.ends_with(word)) { Classes::NONE } else { Classes::SETTINGS }
}

/// What a command means, given as the dissector writes it.
pub(super) fn meaning(text: &[u8], incomplete: bool) -> Arc<Meaning> {
    if incomplete {
        return unclassified("incomplete", 0);
    }
    let words = split(text).unwrap_or_default();
    let Some(name) = words.first().map(|name| String::from_utf8_lossy(name).to_lowercase()) else {
        return unclassified("syntax", 0);
    };
    let both =
        words.get(1).map(|second| format!("{name} {}", String::from_utf8_lossy(second).to_lowercase()));
    let (known, verbs) = match both.and_then(|both| COMMANDS.get_key_value(both.as_str())) {
        Some((both, known)) => (Some(*known), vec![(*both).to_owned(), name]),
        // What one of its subcommands does that is not known, the command itself does not say.
        None if words.len() > 1 && CONTAINERS.contains(name.as_str()) => {
            return unclassified("command", fingerprint_of(name.as_bytes()));
        }
        None => (COMMANDS.get(name.as_str()).copied(), vec![name]),
    };
    let fingerprint = fingerprint_of(verbs[0].as_bytes());
    let Some(known) = known else { return unclassified("command", fingerprint) };
    let mut objects = Vec::new();
    let keys = keys(&verbs[0], &words, known);
    for key in keys.iter().take(MAX_KEYS) {
        let key = String::from_utf8_lossy(key).into_owned();
        if !objects.contains(&key) {
            objects.push(key);
        }
    }
    let command = Command { verbs, objects, functions: Vec::new(), classes: known.classes };
    // What is not told might be what somebody looks for.
    let unclassified = (keys.len() > MAX_KEYS).then_some("more-keys");
    Arc::new(Meaning { commands: vec![command], unclassified, fingerprint, search_path: None })
}

/// The keys among a command's words.
fn keys<'a>(verb: &str, words: &'a [Vec<u8>], known: Known) -> Vec<&'a [u8]> {
    let counted = |at: usize| {
        let count =
            words.get(at).and_then(|count| std::str::from_utf8(count).ok()?.parse().ok()).unwrap_or(0);
        words.iter().skip(at + 1).take(count)
    };
    let found: Vec<&Vec<u8>> = match verb {
        "eval" | "eval_ro" | "evalsha" | "evalsha_ro" | "fcall" | "fcall_ro" | "blmpop" | "bzmpop" => {
            counted(2).collect()
        }
        "lmpop" | "zmpop" | "zunion" | "zinter" | "zdiff" | "zintercard" | "sintercard" => {
            counted(1).collect()
        }
        "zunionstore" | "zinterstore" | "zdiffstore" => words.get(1).into_iter().chain(counted(2)).collect(),
        "xread" | "xreadgroup" => {
            let streams = words.iter().position(|word| word.eq_ignore_ascii_case(b"streams"));
            let after = words.get(streams.map_or(words.len(), |at| at + 1)..).unwrap_or_default();
            after.iter().take(after.len() / 2).collect()
        }
        "migrate" if words.get(3).is_some_and(Vec::is_empty) => {
            let keys = words.iter().skip(6).position(|word| word.eq_ignore_ascii_case(b"keys"));
            words.iter().skip(keys.map_or(words.len(), |at| at + 7)).collect()
        }
        "sort" | "sort_ro" => sorted(words),
        "georadius" | "georadiusbymember" => {
            let stores = words.iter().rposition(|word| {
                word.eq_ignore_ascii_case(b"store") || word.eq_ignore_ascii_case(b"storedist")
            });
            let stored = stores.filter(|at| *at > 1).and_then(|at| words.get(at + 1));
            words.get(1).into_iter().chain(stored).collect()
        }
        _ if known.first == 0 => Vec::new(),
        _ => {
            let end = match known.last {
                last @ 0.. => last.unsigned_abs() + 1,
                last => (words.len() + 1).saturating_sub(last.unsigned_abs()),
            };
            words.iter().take(end).skip(known.first).step_by(known.step.max(1)).collect()
        }
    };
    found.into_iter().map(Vec::as_slice).collect()
}

/// What SORT reads and writes: its key, keys of patterns that BY and GET name, and STORE's.
fn sorted(words: &[Vec<u8>]) -> Vec<&Vec<u8>> {
    let mut found: Vec<_> = words.get(1).into_iter().collect();
    let mut at = 2;
    while let Some(word) = words.get(at) {
        let is = |option: &str| word.eq_ignore_ascii_case(option.as_bytes());
        let value = words.get(at + 1);
        if is("store") {
            found.extend(value);
        } else if is("by") || is("get") {
            // Without a star it names no key.
            found.extend(value.filter(|pattern| pattern.contains(&b'*')));
        }
        at += match () {
            () if is("limit") => 3,
            () if is("store") || is("by") || is("get") => 2,
            () => 1,
        };
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_verbs_keys_and_classes() {
        for (text, verb, keys, classes) in [
            ("GET a", "get", "a", "reads"),
            ("set \"a b\" c EX 1", "set", "a b", "writes"),
            ("MSET a 1 b 2", "mset", "a b", "writes"),
            ("DEL a b c", "del", "a b c", "writes"),
            ("blpop a b 0", "blpop", "a b", "reads writes"),
            ("getex a", "getex", "a", "reads writes"),
            ("getdel a", "getdel", "a", "reads writes"),
            ("spop a", "spop", "a", "reads writes"),
            ("bitfield a get u8 0", "bitfield", "a", "reads writes"),
            ("sort l by w_* limit 0 store get # get o_*->f", "sort", "l w_* o_*->f", "reads writes"),
            ("sort_ro l by nosort get o_*", "sort_ro", "l o_*", "reads"),
            ("command", "command", "", ""),
            ("rename a b", "rename", "a b", "writes"),
            ("eval \"return 1\" 2 k1 k2 a1", "eval", "k1 k2", "executes"),
            ("xread count 1 streams s1 s2 0 0", "xread", "s1 s2", "reads"),
            ("zunionstore d 2 a b weights 1 2", "zunionstore", "d a b", "writes"),
            ("sort l store d", "sort", "l d", "reads writes"),
            ("migrate h 1 \"\" 0 100 auth x keys a b", "migrate", "a b", "writes connects"),
            ("config set dir /tmp", "config set", "", "settings writes-files"),
            ("CONFIG GET *", "config get", "", "reads"),
            ("acl setuser bob on", "acl setuser", "", "grants"),
            ("flushall", "flushall", "", "writes"),
            ("module load /x.so", "module load", "", "reads-files executes"),
            ("ping", "ping", "", ""),
            ("object encoding k", "object encoding", "k", "reads"),
            ("shutdown nosave", "shutdown", "", "ends-sessions"),
        ] {
            let meaning = meaning(text.as_bytes(), false);
            let command = &meaning.commands[0];
            let found = command.classes.names().collect::<Vec<_>>().join(" ");
            assert_eq!(
                (&*command.verbs[0], &*command.objects.join(" "), &*found),
                (verb, keys, classes),
                "{text}"
            );
            assert_eq!(meaning.unclassified, None, "{text}");
        }
        for unknown in ["ft.search idx *", "config sett dir /tmp", "module loadnow x", "acl \"\""] {
            assert_eq!(meaning(unknown.as_bytes(), false).unclassified, Some("command"), "{unknown}");
        }
        let many = format!("del {}", (0..300).map(|key| format!("k{key} ")).collect::<String>());
        assert_eq!(meaning(many.as_bytes(), false).unclassified, Some("more-keys"));
    }
}
