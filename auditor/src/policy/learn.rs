//! A policy out of what a session did: the least that lets it do the same again.
//!
//! It is made from records of connections that were opened. What was refused is not in it: that it was tried is no reason to allow it. Each
//! destination is named with its transport and port, and by what it spoke where all connections to it spoke the same. What cannot be
//! named narrowly is left out, and told in a comment, so that a person decides: unix sockets by a relative or unreadable name, and peers that
//! connected to the agent, whose answers a rule for every port would let out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;

use super::{Destination, SCHEME, SocketName, TCP, UDP};
use crate::protocol::Protocol;

/// Kinds of records that it is made from, to be given to it in this order.
pub const KINDS: [&str; 3] = ["session-opened", "connection-opened", "connection-closed"];
/// Destinations at most: a session that reached more is no pattern for a policy.
const MOST: usize = 4096;
/// Longest name of a policy or an agent.
const MAX_NAME: usize = 64;
/// Addresses on one port that look like a network more than like servers.
const MANY: usize = 16;

/// What a session did, record by record.
#[derive(Debug, Default)]
pub struct Learning {
    session: String,
    agent: String,
    policy: String,
    /// By the text of a rule's destination.
    reached: BTreeMap<String, Reached>,
    sockets: BTreeSet<&'static str>,
    /// What has no narrow name, and why.
    unnamed: BTreeSet<String>,
    too_many: bool,
}

#[derive(Debug, Default)]
struct Reached {
    connections: u64,
    /// By name; `None` among them: one spoke nothing that is known.
    protocols: BTreeSet<Option<String>>,
}

#[derive(Deserialize)]
struct Line {
    dst_endpoint: Option<Endpoint>,
    src_endpoint: Option<Endpoint>,
    connection_info: Option<ConnectionInfo>,
    unmapped: Unmapped,
}

#[derive(Deserialize)]
struct Endpoint {
    ip: Option<IpAddr>,
    port: Option<u16>,
}

#[derive(Deserialize)]
struct ConnectionInfo {
    direction_id: u8,
    protocol_num: Option<u32>,
}

#[derive(Deserialize)]
struct Unmapped {
    auditor: Own,
}

#[derive(Deserialize)]
struct Own {
    kind: String,
    agent: Option<Named>,
    session: Option<Session>,
    connection: Option<Connection>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
struct Session {
    id: String,
    policy: String,
}

#[derive(Deserialize)]
struct Connection {
    socket: Option<String>,
    protocol: Option<String>,
    end: Option<String>,
}

impl Learning {
    /// Takes a record in; others than those of [`KINDS`] are passed over.
    ///
    /// # Errors
    /// It is no record.
    pub fn add(&mut self, line: &[u8]) -> Result<(), serde_json::Error> {
        let line: Line = serde_json::from_slice(line)?;
        let own = &line.unmapped.auditor;
        if let (Some(agent), Some(session)) = (&own.agent, &own.session) {
            self.agent.clone_from(&agent.name);
            self.session.clone_from(&session.id);
            self.policy.clone_from(&session.policy);
        }
        let Some(connection) = &own.connection else { return Ok(()) };
        match own.kind.as_str() {
            "connection-opened" => self.opened(&line, connection),
            "connection-closed" => {
                // One that never came about has said nothing.
                if let (Some(to), true) = (destination(&line), connection.end.as_deref() == Some("ended"))
                    && let Some(reached) = self.reached.get_mut(&to)
                {
                    reached.protocols.insert(connection.protocol.clone());
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn opened(&mut self, line: &Line, connection: &Connection) {
        if line.connection_info.as_ref().is_some_and(|info| info.direction_id == 1) {
            let from = line.src_endpoint.as_ref().and_then(|endpoint| endpoint.ip);
            let from = from.map_or_else(|| "somebody".to_owned(), |ip| ip.to_string());
            self.unnamed.insert(format!(
                "{from} connected to the agent: answers need a rule for every port of it, `to = [\"{from}\"]`"
            ));
            return;
        }
        let Some(to) = destination(line) else {
            let what = connection.socket.as_deref().unwrap_or("a destination");
            self.unnamed.insert(format!("{what} was reached, which no rule can name: use an absolute path"));
            return;
        };
        self.sockets.insert(if to.starts_with("tcp:") {
            "tcp"
        } else if to.starts_with("udp:") {
            "udp"
        } else {
            "unix"
        });
        if self.reached.len() == MOST && !self.reached.contains_key(&to) {
            self.too_many = true;
            return;
        }
        self.reached.entry(to).or_default().connections += 1;
    }

    /// Whether there was anything to learn from.
    pub fn is_empty(&self) -> bool {
        self.session.is_empty()
    }

    /// The configuration, as TOML.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        let suffix = "-learnt";
        let mut name: String = self.agent.chars().take(MAX_NAME - suffix.len()).collect();
        name.push_str(suffix);
        writeln!(
            text,
            "# Learnt from session {} of agent {}, under policy {}.",
            self.session, self.agent, self.policy
        )?;
        writeln!(text, "# It allows what that session did, and nothing else: read it before you use it.")?;
        for unnamed in &self.unnamed {
            writeln!(text, "# Not allowed, because it is too broad to name: {}", one_line(unnamed))?;
        }
        if self.too_many {
            writeln!(
                text,
                "# Not allowed, because there are too many: destinations beyond the first {MOST}."
            )?;
        }
        writeln!(text, "\n[[agent]]\nname = \"{}\"\npolicy = \"{name}\"", self.agent)?;
        writeln!(text, "\n[[policy]]\nname = \"{name}\"\ndefault = \"deny\"")?;
        // What the C library asks the kernel with, and what programs talk to their own children with, leaves no record.
        let usual =
            ["netlink", "unix"].into_iter().chain(self.sockets.iter().copied()).collect::<BTreeSet<_>>();
        let list: Vec<_> = usual.iter().map(|kind| format!("\"{kind}\"")).collect();
        writeln!(text, "sockets = [{}]", list.join(", "))?;
        let mut ports: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for to in self.reached.keys().filter(|to| !to.starts_with(SCHEME)) {
            if let (Some((transport, _)), Some((_, port))) = (to.split_once(':'), to.rsplit_once(':')) {
                *ports.entry((transport, port)).or_default() += 1;
            }
        }
        for ((transport, port), addresses) in ports.into_iter().filter(|(_, addresses)| *addresses >= MANY) {
            writeln!(
                text,
                "\n# {addresses} addresses on {transport} port {port}: if they are of one network, name that instead, as in \"{transport}:10.0.0.0/24:{port}\"."
            )?;
        }
        for (to, reached) in &self.reached {
            let times = if reached.connections == 1 {
                "once".to_owned()
            } else {
                format!("{} times", reached.connections)
            };
            writeln!(text, "\n  [[policy.rule]] # {times}\n  to = [{}]\n  action = \"allow\"", quoted(to))?;
            if let Some(protocol) = self.protocol(to, reached) {
                writeln!(text, "  protocol = \"{protocol}\"")?;
            }
        }
        Ok(())
    }

    /// What everything that was said there was.
    fn protocol(&self, to: &str, reached: &Reached) -> Option<&'static str> {
        let mut spoken = reached.protocols.iter();
        let (Some(Some(only)), None) = (spoken.next(), spoken.next()) else { return None };
        let known = Protocol::ALL.into_iter().find(|known| known.name() == only)?;
        (!to.starts_with("udp:")).then_some(known.name())
    }
}

/// As a rule names it; `None` where none can.
fn destination(line: &Line) -> Option<String> {
    if let Some(socket) =
        line.unmapped.auditor.connection.as_ref().and_then(|connection| connection.socket.as_ref())
    {
        // What records show in place of a byte that cannot be read begins with a backslash.
        let is_plain = !socket.contains('\\');
        return (is_plain && socket.parse::<SocketName>().is_ok_and(|name| !name.is_directory()))
            .then(|| socket.clone());
    }
    let number = line.connection_info.as_ref()?.protocol_num?;
    let transport = match u8::try_from(number).ok()? {
        TCP => "tcp",
        UDP => "udp",
        _ => return None,
    };
    let remote = line.dst_endpoint.as_ref()?;
    let text = format!("{transport}:{}", SocketAddr::new(remote.ip?, remote.port?));
    text.parse::<Destination>().ok().map(|_| text)
}

/// A TOML string.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn one_line(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::clock::Utc;
    use crate::config::parse_at;

    fn record(kind: &str, to: Value, connection: Value) -> Vec<u8> {
        let own = json!({
            "kind": kind, "agent": {"name": "backfill"}, "session": {"id": "00000000000000aa", "policy": "wide"},
            "connection": connection,
        });
        let mut record = json!({"unmapped": {"auditor": own}});
        record.as_object_mut().unwrap().extend(to.as_object().unwrap().clone());
        serde_json::to_vec(&record).unwrap()
    }

    fn tcp(address: &str, port: u16) -> Value {
        json!({"dst_endpoint": {"ip": address, "port": port}, "connection_info": {"direction_id": 2, "protocol_num": 6}})
    }

    fn learnt(records: &[Vec<u8>]) -> String {
        let mut learning = Learning::default();
        for record in records {
            learning.add(record).unwrap();
        }
        let text = learning.text();
        let (settings, told) = parse_at(&text, Utc(0));
        assert!(settings.is_some() && told.is_empty(), "{told:?}\n{text}");
        text
    }

    #[test]
    fn what_was_reached_is_allowed_by_transport_port_and_protocol() {
        let closed = |protocol: Value| json!({"protocol": protocol, "end": "ended"});
        let text = learnt(&[
            record("connection-opened", tcp("10.0.0.1", 5432), json!({})),
            record("connection-opened", tcp("10.0.0.1", 5432), json!({})),
            record("connection-opened", tcp("2001:db8::1", 443), json!({})),
            record("connection-closed", tcp("10.0.0.1", 5432), closed(json!("postgres"))),
            record("connection-closed", tcp("10.0.0.1", 5432), closed(json!("postgres"))),
            record("connection-closed", tcp("2001:db8::1", 443), closed(json!(null))),
        ]);
        assert!(
            text.contains(
                "# 2 times\n  to = [\"tcp:10.0.0.1:5432\"]\n  action = \"allow\"\n  protocol = \"postgres\"\n"
            ),
            "{text}"
        );
        assert!(
            text.ends_with("# once\n  to = [\"tcp:[2001:db8::1]:443\"]\n  action = \"allow\"\n"),
            "{text}"
        );
        assert!(text.contains("sockets = [\"netlink\", \"tcp\", \"unix\"]"), "{text}");
    }

    #[test]
    fn what_cannot_be_named_is_a_comment() {
        let inbound = json!({"src_endpoint": {"ip": "192.0.2.7", "port": 9}, "dst_endpoint": {"ip": "10.0.0.1", "port": 80}, "connection_info": {"direction_id": 1, "protocol_num": 6}});
        let unix = |name: &str| {
            record(
                "connection-opened",
                json!({"connection_info": {"direction_id": 3, "protocol_num": null}}),
                json!({"socket": name}),
            )
        };
        let text = learnt(&[
            record("connection-opened", inbound, json!({})),
            unix("unix:relative"),
            unix("unix:/run/\\xff"),
            unix("unix:/run/pg\"\n[[agent]]"),
            unix("unix:@name"),
        ]);
        assert!(text.contains("too broad to name: 192.0.2.7 connected"), "{text}");
        assert!(
            text.contains("unix:relative was reached") && text.contains("unix:/run/\\xff was reached"),
            "{text}"
        );
        assert!(
            text.contains("to = [\"unix:@name\"]") && text.matches("to = [\"unix").count() == 1,
            "{text}"
        );
        assert_eq!(text.matches("\n[[agent]]").count(), 1, "{text}");
    }

    #[test]
    fn what_was_refused_is_not_learnt() {
        let text = learnt(&[
            record("connection-refused", tcp("10.0.0.1", 22), json!({})),
            record("connection-opened", tcp("10.0.0.2", 22), json!({})),
        ]);
        assert!(!text.contains("10.0.0.1"), "{text}");
    }
}
