//! Every command that a MariaDB server was told is in the trail: verbatim, in order, with its values, outcome and counts; none is invented.
//! The server's general log is the judge of what was said, and the client of what came of it.
#![allow(clippy::unwrap_used, reason = "a test panics")]

use std::collections::BTreeMap;
use std::ffi::OsString;

use auditor_tests::daemon::Daemon;
use auditor_tests::mariadb::{DATABASE, Entry, MariaDb, PASSWORD, USER};
use auditor_tests::python::Python;
use auditor_tests::{UNPRIVILEGED, clients, require_root, runtimes};
use serde_json::Value;

const AGENT: &str = "shop-agent";

struct Scene {
    server: MariaDb,
    daemon: Daemon,
    pids: Vec<u32>,
    /// What each client said of each of its statements, by client; nothing where it is no script.
    said: Vec<Vec<String>>,
}

impl Scene {
    fn new() -> Self {
        require_root().unwrap();
        let server = MariaDb::start(true).unwrap();
        let (port, socket) = (server.port(), server.socket());
        let daemon = Daemon::start(&format!(
            "[[agent]]\nname = \"{AGENT}\"\npolicy = \"shop\"\n\n[[policy]]\nname = \"shop\"\ndefault = \"deny\"\n\
             [[policy.rule]]\nto = [\"127.0.0.1:{port}\", \"[::1]:{port}\"]\naction = \"allow\"\nprotocol = \"mysql\"\n\
             [[policy.rule]]\nto = [\"unix:{}\"]\naction = \"allow\"\nprotocol = \"mysql\"\n",
            socket.display()
        ))
        .unwrap();
        Self { server, daemon, pids: Vec::new(), said: Vec::new() }
    }

    /// Runs a client that tells its process id in a session of its own.
    fn run(&mut self, words: &[OsString]) -> String {
        let output = self.daemon.run(AGENT, UNPRIVILEGED, words).unwrap();
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(
            output.status.success(),
            "{words:?}: {}\n{stderr}\ndaemon: {}",
            output.status,
            self.daemon.said()
        );
        self.pids.push(clients::pid_told(&output.stderr).unwrap());
        stdout.into_owned()
    }

    /// One of the scripts, which print what came of each statement.
    fn run_script(&mut self, words: &[OsString]) {
        let printed = self.run(words);
        let said = printed.lines().filter_map(|line| line.strip_prefix("said "));
        self.said.push(said.map(str::to_owned).collect());
    }

    /// The `mariadb` program, with these options, and a script.
    fn run_mariadb(&mut self, options: &[&str]) {
        let folder = self.daemon.home().folder();
        let script = include_str!("../clients/mysql_statements.sql");
        let script = clients::write(folder, "mysql_statements.sql", script).unwrap();
        let command = format!(
            "MYSQL_PWD={PASSWORD} exec mariadb --no-defaults --user={USER} --force -vvv {} <{}",
            options.join(" "),
            script.display()
        );
        // Whatever a process is started with is on record, so no password is.
        let script = clients::write(folder, "mariadb.sh", &command).unwrap();
        let printed = self.run(&clients::telling_pid(&["/bin/sh".into(), script.into()]));
        assert!(printed.contains("ümlaut ☃"), "{printed}");
        self.said.push(Vec::new());
    }

    fn run_python(&mut self, driver: &str, way: &str, target: &str) {
        let folder = self.daemon.home().folder().to_path_buf();
        let python = Python::with_mysql_drivers(&folder).unwrap();
        let script = include_str!("../clients/mysql_client.py");
        let script = clients::write(&folder, "mysql_client.py", script).unwrap();
        // A place where the agent may write.
        let own = folder.join("written");
        if !own.exists() {
            std::fs::create_dir(&own).unwrap();
            std::fs::set_permissions(&own, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        }
        let authority = self.server.authority();
        let (own, authority) = (own.to_str().unwrap(), authority.to_str().unwrap());
        self.run_script(&python.words(&script, &[driver, way, target, own, authority]));
    }

    fn run_node(&mut self, way: &str, host: &str) {
        let script = include_str!("../clients/mysql_client.js");
        let node = runtimes::JavaScript::mysql(self.daemon.home().folder(), script).unwrap();
        let (port, authority) = (self.server.port().to_string(), self.server.authority());
        let words = node.words(&[way, host, &port, authority.to_str().unwrap()]);
        self.run_script(&words);
    }

    fn target(&self, host: &str) -> String {
        format!("{host}:{}", self.server.port())
    }

    /// Holds both accounts against each other. `tls`: whether all of it was said under TLS.
    fn compare(self, name: &str, tls: bool, least: usize) {
        self.daemon.settle().unwrap();
        let records = self.daemon.records().unwrap();
        let told = told(&self.server.log().unwrap());
        let recorded = recorded(&records);
        assert_eq!(told.len(), self.pids.len(), "a client each: {told:?}");
        assert_eq!(recorded.len(), told.len(), "{}\n{:?}", self.daemon.said(), findings(&records));
        let mut commands = 0;
        let mut values = 0;
        for (number, (told, recorded)) in told.iter().zip(&recorded).enumerate() {
            for (place, (entry, record)) in
                told.iter().zip(recorded.iter().filter(|record| is_logged(record))).enumerate()
            {
                values += check(entry, record).unwrap_or_else(|difference| {
                    panic!(
                        "{name}, client {number}, command {place}: {difference}\nserver: {}",
                        shorten(entry)
                    )
                });
            }
            let logged = recorded.iter().filter(|record| is_logged(record)).count();
            assert_eq!(
                told.len(),
                logged,
                "{name}, client {number}: by the server's account and by the trail's"
            );
            commands += logged;
            for record in recorded {
                assert_eq!(record["actor"]["process"]["pid"], self.pids[number], "{record}");
                let connection = &record["unmapped"]["auditor"]["connection"];
                assert_eq!(
                    (&connection["user"], &connection["protocol"]),
                    (&USER.into(), &"mysql".into()),
                    "{record}"
                );
                assert_eq!(connection["tls"]["decrypted"].as_bool().unwrap_or_default(), tls, "{record}");
                assert_ne!(record["unmapped"]["auditor"]["statement"]["incomplete"], true, "{record}");
            }
        }
        // What clients of drivers said came of it.
        for (said, recorded) in self.said.iter().zip(&recorded).filter(|(said, _)| !said.is_empty()) {
            assert_eq!(said, &results(recorded), "{name}: counts and SQLSTATEs");
        }
        eprintln!("oracle, {name}: {} clients, {commands} commands, {values} bound values", told.len());
        assert!(commands >= least, "only {commands} commands: the test did not do its work");
        assert_eq!(findings(&records), Vec::<&Value>::new());
        let said = serde_json::to_string(&records).unwrap();
        assert!(!said.contains(PASSWORD) && !said.contains("caching_sha2"), "a secret is in the record");
        check_coverage(&records);
        self.daemon.stop().unwrap();
    }
}

/// Without what a text of megabytes makes: it is held back until there is room for it.
fn findings(records: &[Value]) -> Vec<&Value> {
    let findings = records.iter().filter(|record| record["unmapped"]["auditor"]["kind"] == "finding");
    findings.filter(|record| record["finding_info"]["title"] != "ring-overrun").collect()
}

fn shorten(entry: &Entry) -> String {
    format!("{} {:?}", entry.command, entry.argument.chars().take(200).collect::<String>())
}

/// What the server was told, by connection in order of appearance. Preparing is told again by what is executed.
fn told(log: &[Entry]) -> Vec<Vec<Entry>> {
    let mut connections: BTreeMap<u64, Vec<Entry>> = BTreeMap::new();
    for entry in log.iter().filter(|entry| entry.command != "Connect" || entry.argument.contains(USER)) {
        let entries = connections.entry(entry.connection).or_default();
        if !["Connect", "Prepare", "Close stmt", "Quit"].contains(&entry.command.as_str()) {
            entries.push(entry.clone());
        }
    }
    connections.into_values().collect()
}

/// The trail's account of the same.
fn recorded(records: &[Value]) -> Vec<Vec<&Value>> {
    let mut connections: Vec<(&Value, Vec<&Value>)> = Vec::new();
    for record in records.iter().filter(|record| record["unmapped"]["auditor"]["kind"] == "statement") {
        let id = &record["unmapped"]["auditor"]["connection"]["id"];
        match connections.iter_mut().find(|(known, _)| *known == id) {
            Some((_, entries)) => entries.push(record),
            None => connections.push((id, vec![record])),
        }
    }
    for (_, entries) in &connections {
        for (place, record) in entries.iter().enumerate() {
            assert_eq!(record["unmapped"]["auditor"]["statement"]["seq"], place + 1, "{record}");
        }
    }
    connections.into_iter().map(|(_, entries)| entries).collect()
}

fn statement(record: &Value) -> &Value {
    &record["unmapped"]["auditor"]["statement"]
}

fn text(record: &Value) -> &str {
    record["query_info"]["query_string"].as_str().unwrap()
}

/// What could not be prepared is not in the server's log, nor are these two.
fn is_logged(record: &Value) -> bool {
    let refused = statement(record)["kind"] == "prepared" && statement(record)["outcome"] == "failed";
    !refused && !["COM_PING", "COM_RESET_CONNECTION"].contains(&text(record))
}

/// Holds a command against its record; answers how many bound values agree.
fn check(entry: &Entry, record: &Value) -> Result<usize, String> {
    let kind = statement(record)["kind"].as_str().unwrap();
    let found = text(record);
    let differs = || Err(format!("trail: {kind} {:?}", found.chars().take(200).collect::<String>()));
    let admin = |name: &str| if kind == "admin" && found == name { Ok(0) } else { differs() };
    match entry.command.as_str() {
        "Query" if kind == "simple" || kind == "copy" => {
            // A text that is too long is cut, by the trail at another place than here.
            let cut = statement(record)["text_bytes"].as_u64() > Some(16 << 20)
                && found.starts_with(&entry.argument);
            if found == entry.argument || cut { Ok(0) } else { differs() }
        }
        "Execute" if kind == "prepared" => {
            let none = Vec::new();
            let values = statement(record)["parameters"].as_array().unwrap_or(&none);
            match bound(found, values, &entry.argument) {
                true => Ok(values.len()),
                false => Err(format!("trail: {found:?} with {values:?}")),
            }
        }
        "Init DB" => admin(&format!("COM_INIT_DB {}", entry.argument)),
        "Statistics" => admin("COM_STATISTICS"),
        "Reset stmt" if found.starts_with("COM_STMT_RESET ") => Ok(0),
        "Change user" => admin(&format!("COM_CHANGE_USER {USER}")),
        _ => differs(),
    }
}

/// Whether the text with these values is what the server says it has executed.
fn bound(text: &str, values: &[Value], executed: &str) -> bool {
    let mut pieces = text.split('?');
    let mut rest = match executed.strip_prefix(pieces.next().unwrap_or_default()) {
        Some(rest) => rest,
        None => return false,
    };
    for (value, piece) in values.iter().zip(pieces.by_ref()) {
        let value = match value {
            Value::Null => "NULL".to_owned(),
            Value::String(text) => text.replace('\\', "\\\\").replace('\'', "\\'"),
            _ => return false,
        };
        // The log has times as literals of their type.
        let word = ["TIMESTAMP", "DATE", "TIME"].into_iter().find_map(|word| rest.strip_prefix(word));
        let quoted = word
            .unwrap_or(rest)
            .strip_prefix('\'')
            .and_then(|rest| rest.strip_prefix(&value)?.strip_prefix('\''));
        let Some(after) = quoted.or_else(|| rest.strip_prefix(&value)) else { return false };
        let Some(after) = after.strip_prefix(piece) else { return false };
        rest = after;
    }
    rest.is_empty() && pieces.next().is_none()
}

/// What a script says of its statements: the first result's rows, or the SQLSTATE. What drivers say on their own is left out.
fn results(records: &[&Value]) -> Vec<String> {
    let own = |text: &str| {
        let text = text.to_ascii_lowercase();
        text.starts_with("set ") || text == "commit" || text == "rollback"
    };
    records
        .iter()
        .filter(|record| statement(record)["kind"] != "admin" && !own(text(record)))
        .map(|record| match statement(record)["error_code"].as_str() {
            Some(code) => code.to_owned(),
            // The script looks at the first result of several, which has none.
            None if text(record).contains("; ") => "0".to_owned(),
            None => statement(record)["rows"].to_string(),
        })
        .collect()
}

/// Every connection's bytes were audited to the last.
fn check_coverage(records: &[Value]) {
    let closed = records.iter().filter(|record| record["unmapped"]["auditor"]["kind"] == "connection-closed");
    for record in closed {
        let coverage = &record["unmapped"]["auditor"]["connection"]["coverage"];
        assert_eq!(coverage["gaps"].as_array().map(Vec::len), Some(0), "{record}");
        assert_eq!(
            (&coverage["opaque_sent"], &coverage["opaque_received"]),
            (&0.into(), &0.into()),
            "{record}"
        );
    }
}

#[test]
fn the_mariadb_program() {
    let mut scene = Scene::new();
    let port = format!("--port={}", scene.server.port());
    let socket = format!("--socket={}", scene.server.socket().display());
    for host in ["--host=127.0.0.1", "--host=::1"] {
        scene.run_mariadb(&[host, &port, "--skip-ssl"]);
    }
    scene.run_mariadb(&["--host=127.0.0.1", &port, "--skip-ssl", "--compress"]);
    scene.run_mariadb(&[&socket, "--skip-ssl"]);
    assert_eq!(DATABASE, "shop");
    scene.compare("mariadb", false, 80);
}

#[test]
fn drivers_in_the_clear_and_compressed() {
    let mut scene = Scene::new();
    let target = scene.target("127.0.0.1");
    scene.run_python("pymysql", "plain", &target);
    scene.run_python("connector", "plain", &target);
    scene.run_python("connector", "compressed", &target);
    scene.run_node("plain", "127.0.0.1");
    scene.run_node("compressed", "::1");
    scene.compare("drivers", false, 1000);
}

#[test]
fn drivers_on_the_unix_socket() {
    let mut scene = Scene::new();
    let socket = scene.server.socket().display().to_string();
    scene.run_python("pymysql", "plain", &socket);
    scene.run_python("connector", "plain", &socket);
    scene.run_python("connector", "compressed", &socket);
    scene.compare("unix socket", false, 600);
}

#[test]
fn clients_under_tls() {
    let mut scene = Scene::new();
    let target = scene.target("127.0.0.1");
    let port = format!("--port={}", scene.server.port());
    let authority = format!("--ssl-ca={}", scene.server.authority().display());
    scene.run_mariadb(&["--host=127.0.0.1", &port, "--ssl", &authority]);
    scene.run_python("pymysql", "tls", &target);
    scene.run_python("connector", "tls", &target);
    scene.run_node("tls", "127.0.0.1");
    scene.compare("TLS", true, 800);
}

#[test]
fn whatever_was_executed_by_number_has_its_text_in_the_trail() {
    // As many as the daemon keeps of one connection.
    const KEPT: usize = 4096;
    let scene = Scene::new();
    scene.server.sql(&format!("create table {DATABASE}.said (word text)")).unwrap();
    let folder = scene.daemon.home().folder();
    let python = Python::with_mysql_drivers(folder).unwrap();
    let script = clients::write(folder, "names.py", include_str!("../clients/names_mysql.py")).unwrap();
    let words = python.words(&script, &["127.0.0.1", &scene.server.port().to_string(), &KEPT.to_string()]);
    let output = scene.daemon.run(AGENT, UNPRIVILEGED, &words).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let executed = scene.server.sql(&format!("select word from {DATABASE}.said")).unwrap();
    for word in ["kept 0", "kept 1", "kept 4097"] {
        assert!(executed.lines().any(|line| line.contains(word)), "{word} was not executed: {executed}");
    }
    scene.daemon.settle().unwrap();
    let records = scene.daemon.records().unwrap();
    let [records] = &recorded(&records)[..] else { panic!("not one connection") };
    let insert = |word: &str| format!("insert into said values ('{word}')");
    let place = |text: &str, outcome: &str, name: &Value| {
        let is = |record: &&Value| {
            let own = statement(record);
            text == self::text(record)
                && own["outcome"] == outcome
                && (name.is_null() || own["name"] == *name)
        };
        let found = records.iter().position(is);
        found.unwrap_or_else(|| panic!("{outcome}, {name}: {text:?} is not in the trail"))
    };
    for word in ["kept 0", "kept 1"] {
        let prepared = place(&insert(word), "prepared", &Value::Null);
        let executed = place("", "completed", &statement(records[prepared])["name"]);
        assert!(prepared < executed, "{word}");
    }
    place(&insert("kept 4097"), "completed", &Value::Null);
    let all = records.iter().filter(|record| statement(record)["kind"] == "prepared");
    assert_eq!(all.count(), 5, "two that were forgotten, three executions");
    scene.daemon.stop().unwrap();
}
