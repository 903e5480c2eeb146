//! From the tree to verbs, objects and classes.
//!
//! The tree is walked whole: a node that is not known is walked through like any other, and a command that is not known makes
//! everything unclassified. So what is missing here makes a meaning vaguer, not milder.

#![forbid(unsafe_code)]

use std::borrow::Cow;

use super::commands::{NAMING, command};
use super::functions;
use super::tree::{Node, Tree};
use crate::statement::{Classes, Command, Effect};

/// Commands of one text.
const MAX_COMMANDS: usize = 256;
/// Names of one command, and names in its WITH clauses; looking one up costs as much. A command with more is not classified.
const MAX_NAMES: usize = 256;

/// Commands with their effects on what later ones mean; `None`: there is something that is not known.
pub(super) fn commands(json: &[u8]) -> Option<Vec<(Command, Effect)>> {
    let tree = Tree::read(json)?;
    let statements = tree.root()?.get("stmts")?;
    if statements.children().nth(MAX_COMMANDS).is_some() {
        return None;
    }
    statements.children().map(|raw| Walk::default().command(raw.get("stmt")?)).collect()
}

/// Names that a WITH clause gives, and the scope around.
#[derive(Debug)]
struct Scope<'t> {
    around: usize,
    name: Cow<'t, str>,
}

/// A node that is still to be looked at.
#[derive(Clone, Copy)]
struct Task<'t> {
    node: Node<'t>,
    /// Its scope's index and one; 0: none.
    scope: usize,
    /// Within an EXPLAIN that does not execute.
    planned: bool,
    /// Within a query or a change of data: tables are there to be read.
    query: bool,
}

#[derive(Default)]
struct Walk<'t> {
    tasks: Vec<Task<'t>>,
    scopes: Vec<Scope<'t>>,
    command: Command,
    effect: Effect,
    unknown: bool,
}

impl<'t> Walk<'t> {
    fn command(mut self, statement: Node<'t>) -> Option<(Command, Effect)> {
        self.tasks.push(Task { node: statement, scope: 0, planned: false, query: false });
        while let Some(task) = self.tasks.pop() {
            self.node(task);
        }
        (!self.unknown && !self.command.verbs.is_empty()).then_some((self.command, self.effect))
    }

    fn node(&mut self, mut task: Task<'t>) {
        let node = task.node;
        if !node.is_object() {
            return self.push_children(task, &[]);
        }
        let key = node.key();
        match key {
            // Values, types and columns say nothing here, and there are many of them.
            "A_Const" | "String" | "ColumnRef" | "ParamRef" | "A_Star" | "Integer" | "Float" | "Boolean" => {
                return;
            }
            "RangeVar" => return self.table(task, true),
            "FuncCall" | "funccall" => self.call(task),
            _ if node.get("relname").is_some() => return self.table(task, false),
            _ => {}
        }
        if let Some(with) = node.get("withClause") {
            task.scope = self.with(with, task);
        }
        if key.ends_with("Stmt") && key.starts_with(|first: char| first.is_ascii_uppercase()) {
            task.planned |= self.statement(key, node, task.planned);
            task.query |=
                matches!(key, "SelectStmt" | "InsertStmt" | "UpdateStmt" | "DeleteStmt" | "MergeStmt");
        }
        if key == "MergeWhenClause" {
            match node.string("commandType").as_deref() {
                Some("CMD_INSERT") => self.verb("insert"),
                Some("CMD_UPDATE") => self.verb("update"),
                Some("CMD_DELETE") => self.verb("delete"),
                _ => {}
            }
        }
        if key == "intoClause" {
            // SELECT INTO. CREATE TABLE AS calls it `into`.
            self.verb("create");
            self.may(Classes::DEFINES | Classes::WRITES, task.planned);
        }
        if matches!(key, "onConflictClause") && node.string("action").as_deref() == Some("ONCONFLICT_UPDATE")
        {
            self.verb("update");
        }
        if key == "LockingClause" {
            // Its relations are names of this query's.
            return self.may(Classes::LOCKS, task.planned);
        }
        self.push_children(task, &["withClause"]);
    }

    fn push_children(&mut self, task: Task<'t>, without: &[&str]) {
        let first = self.tasks.len();
        let children = task.node.children().filter(|child| !without.contains(&child.key()));
        self.tasks.extend(children.map(|node| Task { node, ..task }));
        // The first is to be taken first.
        self.tasks[first..].reverse();
    }

    /// The scope of what a WITH clause belongs to. Its queries are put aside, each in its own.
    fn with(&mut self, clause: Node<'t>, task: Task<'t>) -> usize {
        let recursive = clause.flag("recursive");
        let (first, mut scope) = (self.tasks.len(), task.scope);
        for query in clause.get("ctes").into_iter().flat_map(Node::children) {
            let Some(query) = query.inside() else { continue };
            self.tasks.push(Task { node: query, scope, ..task });
            if let Some(name) = query.string("ctename") {
                if self.scopes.len() >= MAX_NAMES {
                    self.unknown = true;
                    break;
                }
                self.scopes.push(Scope { around: scope, name });
                scope = self.scopes.len();
            }
        }
        if recursive {
            self.tasks[first..].iter_mut().for_each(|task| task.scope = scope);
        }
        scope
    }

    fn is_local(&self, mut scope: usize, name: &str) -> bool {
        while let Some(known) = scope.checked_sub(1).and_then(|index| self.scopes.get(index)) {
            if known.name == name {
                return true;
            }
            scope = known.around;
        }
        false
    }

    /// A table's name. `read`: it stands where a name from a WITH clause may stand too. What a command changes is never one.
    fn table(&mut self, task: Task<'t>, read: bool) {
        let Some(name) = task.node.string("relname") else { return };
        let schema = task.node.string("schemaname");
        if read && schema.is_none() && self.is_local(task.scope, &name) {
            return;
        }
        let database = task.node.string("catalogname");
        let parts = [database, schema, Some(name)];
        self.object(parts.into_iter().flatten());
        if read && task.query {
            self.may(Classes::READS, task.planned);
        }
    }

    fn call(&mut self, task: Task<'t>) {
        let name: Vec<Cow<'t, str>> =
            task.node.get("funcname").into_iter().flat_map(Node::children).filter_map(Node::sval).collect();
        let Some((last, before)) = name.split_last() else { return };
        let schema = before.last().map(|schema| &**schema);
        let classes = functions::classes(schema, last);
        if classes != Classes::NONE {
            let name = name.iter().map(|part| part_of(part)).collect::<Vec<_>>().join(".");
            self.unknown |= !add(&mut self.command.functions, name);
        }
        // What is immutable is computed when a query is planned; which functions are is not in the text.
        self.may(classes, false);
        if last == "set_config" {
            self.effect = Effect::Unsettles;
        }
    }

    /// Takes a command. Answers whether what is within it is not executed.
    fn statement(&mut self, kind: &str, node: Node<'t>, planned: bool) -> bool {
        let Some((verb, classes)) = command(kind) else {
            self.unknown = true;
            return false;
        };
        let is_grant = node.flag("is_grant");
        match kind {
            "GrantStmt" | "GrantRoleStmt" if !is_grant => self.verb("revoke"),
            "VariableSetStmt" => self.variable(node),
            "TransactionStmt" => self.transaction(node),
            "VacuumStmt" if !node.flag("is_vacuumcmd") => self.verb("analyze"),
            "FetchStmt" if node.flag("ismove") => self.verb("move"),
            "SelectStmt" if node.get("valuesLists").is_some() => {
                if self.command.verbs.is_empty() {
                    self.verb("values");
                }
            }
            _ => self.verb(verb),
        }
        self.may(classes, planned);
        match kind {
            "CopyStmt" => self.copy(node, planned),
            "SelectStmt" | "InsertStmt" | "UpdateStmt" | "DeleteStmt" | "MergeStmt" => {}
            "PrepareStmt" => self.effect = name(node).map_or(Effect::Unsettles, Effect::Prepares),
            "ExecuteStmt" => self.effect = name(node).map_or(Effect::Unsettles, Effect::Executes),
            "DeallocateStmt" => self.effect = Effect::Deallocates(name(node)),
            "DiscardStmt" => self.effect = Effect::Unsettles,
            "ExplainStmt" => return !analyzes(node),
            "GrantStmt" if node.string("targtype").as_deref() == Some("ACL_TARGET_ALL_IN_SCHEMA") => {
                for schema in node.get("objects").into_iter().flat_map(Node::children) {
                    self.object(schema.sval().into_iter().chain([Cow::Borrowed("*")]));
                }
            }
            // `subname` is a column's or the like where there is something that it belongs to.
            "RenameStmt" if node.get("relation").is_some() || node.get("object").is_some() => {
                self.names(node, &["object"]);
            }
            "RenameStmt" => self.names(node, &["subname"]),
            // What they set is no object.
            "ConstraintsSetStmt" | "VariableShowStmt" => {}
            _ => self.names(node, &NAMING),
        }
        planned
    }

    /// What a command is about, where that is no table.
    fn names(&mut self, node: Node<'t>, fields: &[&str]) {
        let policy = node.key().ends_with("PolicyStmt");
        for field in node.children().filter(|field| fields.contains(&field.key())) {
            if (policy && field.key() == "roles") || (field.key() == "typeName" && field.is_object()) {
                // For whom, or of which type.
                continue;
            }
            if let Some(name) = field.text() {
                self.object([name].into_iter());
            } else if field.is_object() {
                self.named(field);
            } else if field.key() == "objects" || field.key() == "roles" || field.key() == "granted_roles" {
                field.children().for_each(|object| self.named(object));
            } else {
                self.object(field.children().filter_map(Node::sval));
            }
        }
    }

    /// One thing that is named in one of many ways.
    fn named(&mut self, object: Node<'t>) {
        let bare = object.get("objname").or_else(|| object.get("names")).or_else(|| object.get("items"));
        if let Some(parts) = bare {
            return self.object(parts.children().filter_map(Node::sval).filter(|part| part != "pg_catalog"));
        }
        if let Some(role) = object.string("rolename").or_else(|| object.string("priv_name")) {
            return self.object([role].into_iter());
        }
        if let Some(name) = object.sval().or_else(|| object.string("sval")) {
            return self.object([name].into_iter());
        }
        // `RangeVar` is found where the tree is walked.
        if let Some(inside) =
            object.inside().filter(|inside| inside.is_object() && inside.key() != "RangeVar")
        {
            let parts = inside.get("objname").or_else(|| inside.get("names")).or_else(|| inside.get("items"));
            if let Some(parts) = parts {
                let flat = parts.children().flat_map(|part| match part.inside() {
                    Some(inside) if inside.key() == "TypeName" => inside
                        .get("names")
                        .into_iter()
                        .flat_map(Node::children)
                        .filter_map(Node::sval)
                        .collect(),
                    _ => part.sval().into_iter().collect::<Vec<_>>(),
                });
                self.object(flat.filter(|part| part != "pg_catalog"));
            } else if let Some(role) = inside.string("rolename").or_else(|| inside.string("priv_name")) {
                self.object([role].into_iter());
            }
        }
    }

    fn variable(&mut self, node: Node<'t>) {
        let kind = node.string("kind").unwrap_or_default();
        let whole = self.command.verbs.is_empty();
        self.verb(if kind.starts_with("VAR_RESET") { "reset" } else { "set" });
        if !whole {
            // Of a role, a database or a function: for later sessions, or while it runs.
            return;
        }
        let Some(name) = node.string("name") else {
            // RESET ALL.
            self.effect = Effect::Unsettles;
            return;
        };
        match &*name {
            "role" | "session_authorization" => {
                self.command.classes.insert(Classes::IDENTITY);
                let arguments = node.get("args").into_iter().flat_map(Node::children);
                self.object(arguments.filter_map(Node::sval));
            }
            "search_path" => {
                let arguments = node.get("args").into_iter().flat_map(Node::children);
                let path: Option<Vec<String>> =
                    arguments.map(|schema| schema.sval().map(Cow::into_owned)).collect();
                self.effect = match path.filter(|path| !path.is_empty() && !node.flag("is_local")) {
                    Some(path) => Effect::SearchPath(path),
                    None => Effect::Unsettles,
                };
            }
            // The server tells what it is.
            "client_encoding" => self.effect = Effect::Encodes(false),
            "standard_conforming_strings" => self.effect = Effect::Unsettles,
            _ => {}
        }
    }

    fn transaction(&mut self, node: Node<'t>) {
        let kind = node.string("kind").unwrap_or_default();
        self.verb(match kind.strip_prefix("TRANS_STMT_").unwrap_or_default() {
            "BEGIN" | "START" => "begin",
            "COMMIT" => "commit",
            "SAVEPOINT" => "savepoint",
            "RELEASE" => "release",
            "ROLLBACK" | "ROLLBACK_TO" => "rollback",
            "PREPARE" => "prepare transaction",
            "COMMIT_PREPARED" => "commit prepared",
            "ROLLBACK_PREPARED" => "rollback prepared",
            _ => return self.unknown = true,
        });
    }

    fn copy(&mut self, node: Node<'t>, planned: bool) {
        let from = node.flag("is_from");
        self.may(if from { Classes::WRITES } else { Classes::READS }, planned);
        if node.flag("is_program") {
            self.may(Classes::EXECUTES, planned);
        } else if node.get("filename").is_some() {
            self.may(if from { Classes::READS_FILES } else { Classes::WRITES_FILES }, planned);
        }
    }

    fn verb(&mut self, verb: &str) {
        self.unknown |= !add(&mut self.command.verbs, verb.to_owned());
    }

    fn may(&mut self, classes: Classes, planned: bool) {
        if !planned {
            self.command.classes.insert(classes);
        }
    }

    fn object(&mut self, parts: impl Iterator<Item = Cow<'t, str>>) {
        let mut name = String::new();
        for part in parts {
            if !name.is_empty() {
                name.push('.');
            }
            name.push_str(&part_of(&part));
        }
        if !name.is_empty() {
            self.unknown |= !add(&mut self.command.objects, name);
        }
    }
}

/// A part of a name as it is written in lists of objects: as the server has it, quoted where a dot would be taken for a separator.
fn part_of(part: &str) -> Cow<'_, str> {
    if part.contains(['.', '"']) {
        Cow::Owned(format!("\"{}\"", part.replace('"', "\"\"")))
    } else {
        Cow::Borrowed(part)
    }
}

/// Adds a name once; `false`: there are too many.
fn add(names: &mut Vec<String>, name: String) -> bool {
    if !names.contains(&name) {
        names.push(name);
    }
    names.len() <= MAX_NAMES
}

fn name(node: Node<'_>) -> Option<String> {
    node.string("name").map(Cow::into_owned)
}

/// Whether an EXPLAIN executes. An option that cannot be read is taken for one that says so.
fn analyzes(node: Node<'_>) -> bool {
    let options = node.get("options").into_iter().flat_map(Node::children).filter_map(Node::inside);
    let mut analyzes = false;
    for option in options.filter(|option| option.string("defname").as_deref() == Some("analyze")) {
        let off = option.get("arg").and_then(Node::inside).is_some_and(|value| {
            value
                .string("sval")
                .is_some_and(|word| word.eq_ignore_ascii_case("off") || word.eq_ignore_ascii_case("false"))
        });
        analyzes = !off;
    }
    analyzes
}
