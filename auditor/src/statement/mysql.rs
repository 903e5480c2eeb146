//! What MySQL's and MariaDB's SQL means, by sqlparser's MySQL dialect.
//!
//! There is no parser of MySQL's own to be had as a library. This one does not know all of MySQL's grammar, and what it does not know is
//! unclassified: `LOAD DATA`, `INTO OUTFILE`, `HANDLER`, `XA`, `PREPARE … FROM`, definitions of routines among them. Where it could
//! know more than the server, which would be worse, it is not asked: comments that servers execute (`/*! … */`), and more operators than
//! the trees of this parser can be deep without harm.

#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::LazyLock;

use sqlparser::ast::{
    AlterTable, Expr, Function, GrantObjects, ObjectName, ObjectType, Query, Select, Set, Statement, Use,
    Visit, Visitor,
};
use sqlparser::dialect::MySqlDialect;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::Token;

use super::dialogue::is_safe_encoding;
use super::shape::Shape;
use super::{Classes, Command, Effect};

/// Trees grow to the left with each operator, and are taken apart recursively.
const MAX_OPERATORS: usize = 400;
/// Depth that the parser goes to.
const MAX_DEPTH: usize = 48;
/// Names of one command, and commands of one text.
const MAX_NAMES: usize = 256;

/// The server's own functions that do nothing but compute.
static OWN: LazyLock<HashSet<&str>> =
    LazyLock::new(|| include_str!("mysql_functions.txt").split_whitespace().collect());

/// The commands of `text`, whose shape is `shape`; `None`: nobody knows what they are.
pub(super) fn commands(text: &str, shape: &Shape) -> Option<Vec<(Command, Effect)>> {
    if shape.executable_comment || shape.operators > MAX_OPERATORS {
        return None;
    }
    let dialect = MySqlDialect {};
    let parser = Parser::new(&dialect).with_recursion_limit(MAX_DEPTH);
    let mut parser = parser.try_with_sql(text).ok()?;
    let statements = parser.parse_statements().ok()?;
    // It stops without an error where a block would end.
    if parser.peek_token_ref().token != Token::EOF || statements.len() > MAX_NAMES {
        return None;
    }
    statements.iter().map(command).collect()
}

fn command(statement: &Statement) -> Option<(Command, Effect)> {
    let mut walk = Walk::default();
    match statement.visit(&mut walk) {
        ControlFlow::Continue(()) if !walk.command.verbs.is_empty() => {
            if matches!(statement, Statement::Explain { analyze: false, .. }) {
                // Derived tables and what is constant are computed for the plan, functions in them are called.
                walk.command.classes = walk.called;
            }
            Some((walk.command, walk.effect))
        }
        _ => None,
    }
}

/// Something that is not known, or too much of it.
struct Unknown;

/// A WITH clause.
struct Scope {
    names: Vec<String>,
    /// Where its queries are.
    queries: Vec<*const Query>,
    recursive: bool,
    /// How many of its names are seen where the walk is.
    visible: usize,
}

#[derive(Default)]
struct Walk {
    command: Command,
    effect: Effect,
    /// What the functions may do.
    called: Classes,
    scopes: Vec<Scope>,
}

impl Walk {
    fn verb(&mut self, verb: &str, classes: Classes) -> ControlFlow<Unknown> {
        self.command.classes.insert(classes);
        add(&mut self.command.verbs, verb.to_owned())
    }

    fn object(&mut self, name: &ObjectName) -> ControlFlow<Unknown> {
        match written(name) {
            Some(name) => add(&mut self.command.objects, name),
            None => ControlFlow::Break(Unknown),
        }
    }

    fn call(&mut self, function: &Function) -> ControlFlow<Unknown> {
        let Some(name) = written(&function.name) else { return ControlFlow::Break(Unknown) };
        let lower = name.to_lowercase();
        let classes = match lower.as_str() {
            "load_file" => Classes::READS_FILES,
            "sleep" | "benchmark" | "master_pos_wait" | "source_pos_wait" => Classes::SLEEPS,
            "get_lock" | "release_lock" | "release_all_locks" => Classes::LOCKS,
            "sys_exec" | "sys_eval" | "sys_get" | "sys_set" => Classes::EXECUTES | Classes::CALLS,
            "nextval" | "setval" => Classes::WRITES,
            "last_insert_id" => Classes::NONE,
            name if OWN.contains(name) => Classes::NONE,
            _ => Classes::CALLS,
        };
        if classes != Classes::NONE {
            self.command.classes.insert(classes);
            self.called.insert(classes);
            add(&mut self.command.functions, name)?;
        }
        ControlFlow::Continue(())
    }

    fn statement(&mut self, statement: &Statement) -> ControlFlow<Unknown> {
        const W: Classes = Classes::WRITES;
        const D: Classes = Classes::DEFINES;
        let none = Classes::NONE;
        match statement {
            Statement::Query(_) => ControlFlow::Continue(()),
            Statement::Insert(insert) => {
                self.verb(if insert.replace_into { "replace" } else { "insert" }, W)?;
                if insert.on.is_some() { self.verb("update", W) } else { ControlFlow::Continue(()) }
            }
            Statement::Update(_) => self.verb("update", W),
            Statement::Delete(delete) => {
                self.verb("delete", W)?;
                delete.tables.iter().try_for_each(|name| self.object(name))
            }
            Statement::Merge(_) => self.verb("merge", W),
            Statement::Truncate(truncate) => {
                self.verb("truncate", W)?;
                truncate.table_names.iter().try_for_each(|target| self.object(&target.name))
            }
            Statement::CreateTable(table) => {
                self.verb("create", D)?;
                if table.query.is_some() {
                    self.command.classes.insert(W);
                }
                self.object(&table.name)
            }
            Statement::CreateView(view) => {
                self.verb("create", D)?;
                self.object(&view.name)
            }
            Statement::CreateIndex(index) => {
                self.verb("create", D)?;
                self.object(&index.table_name)
            }
            Statement::CreateDatabase { db_name, .. } => {
                self.verb("create", D)?;
                self.object(db_name)
            }
            Statement::AlterTable(AlterTable { name, .. }) => {
                self.verb("alter", D)?;
                self.object(name)
            }
            Statement::RenameTable(renames) => {
                self.verb("rename", D)?;
                renames.iter().try_for_each(|rename| self.object(&rename.old_name))
            }
            Statement::Drop { object_type, names, .. } => {
                let user = matches!(object_type, ObjectType::User | ObjectType::Role);
                self.verb("drop", if user { D | Classes::GRANTS } else { D | W })?;
                names.iter().try_for_each(|name| self.object(name))
            }
            Statement::CreateUser(_) | Statement::CreateRole(_) => self.verb("create", D | Classes::GRANTS),
            Statement::AlterUser(_) | Statement::AlterRole { .. } => self.verb("alter", D | Classes::GRANTS),
            Statement::Grant(grant) => {
                self.verb("grant", Classes::GRANTS)?;
                self.granted(grant.objects.as_ref())
            }
            Statement::Revoke(revoke) => {
                self.verb("revoke", Classes::GRANTS)?;
                self.granted(revoke.objects.as_ref())
            }
            Statement::Set(set) => {
                let (effect, classes) = setting(set);
                self.effect = effect;
                self.verb("set", Classes::SETTINGS | classes)
            }
            Statement::Use(to) => {
                if let Use::Object(name) | Use::Database(name) | Use::Schema(name) = to
                    && let Some(name) = written(name)
                {
                    self.effect = Effect::SearchPath(vec![name]);
                }
                self.verb("use", Classes::SETTINGS)
            }
            Statement::Call(function) => {
                self.verb("call", Classes::CALLS)?;
                self.call(function)
            }
            Statement::Execute { name, .. } => {
                self.effect = match name.as_ref().and_then(written) {
                    Some(name) => Effect::Executes(name),
                    None => Effect::Unsettles,
                };
                self.verb("execute", Classes::EXECUTES)
            }
            Statement::Deallocate { name, .. } => {
                self.effect = Effect::Deallocates(Some(name.value.clone()));
                self.verb("deallocate", none)
            }
            Statement::Kill { .. } => self.verb("kill", Classes::ENDS_SESSIONS),
            Statement::Flush { .. } => self.verb("flush", Classes::SETTINGS),
            Statement::LockTables { tables } => {
                self.verb("lock", Classes::LOCKS)?;
                tables.iter().try_for_each(|lock| add(&mut self.command.objects, lock.table.value.clone()))
            }
            Statement::UnlockTables => self.verb("unlock", none),
            Statement::Explain { .. } | Statement::ExplainTable { .. } => self.verb("explain", none),
            Statement::StartTransaction { .. } => self.verb("begin", none),
            Statement::Commit { .. } => self.verb("commit", none),
            Statement::Rollback { .. } => self.verb("rollback", none),
            Statement::Savepoint { .. } => self.verb("savepoint", none),
            Statement::ReleaseSavepoint { .. } => self.verb("release", none),
            Statement::Analyze(_) => self.verb("analyze", Classes::LOCKS),
            Statement::ShowFunctions { .. }
            | Statement::ShowVariable { .. }
            | Statement::ShowStatus { .. }
            | Statement::ShowVariables { .. }
            | Statement::ShowCreate { .. }
            | Statement::ShowColumns { .. }
            | Statement::ShowDatabases { .. }
            | Statement::ShowProcessList { .. }
            | Statement::ShowTables { .. }
            | Statement::ShowViews { .. }
            | Statement::ShowCharset(_)
            | Statement::ShowCollation { .. } => self.verb("show", none),
            _ => ControlFlow::Break(Unknown),
        }
    }

    fn granted(&mut self, objects: Option<&GrantObjects>) -> ControlFlow<Unknown> {
        match objects {
            Some(GrantObjects::Tables(names)) => names.iter().try_for_each(|name| self.object(name)),
            _ => ControlFlow::Continue(()),
        }
    }

    fn is_local(&self, name: &ObjectName) -> bool {
        let [part] = name.0.as_slice() else { return false };
        let Some(name) = part.as_ident() else { return false };
        let seen = |scope: &Scope| {
            scope.names[..scope.visible].iter().any(|known| known.eq_ignore_ascii_case(&name.value))
        };
        self.scopes.iter().any(seen)
    }

    /// Where `query` is one of the innermost WITH clauses': its scope, and its place there.
    fn entered(&mut self, query: &Query) -> Option<(&mut Scope, usize)> {
        let scope = self.scopes.last_mut()?;
        let place = scope.queries.iter().position(|known| std::ptr::eq(*known, query))?;
        Some((scope, place))
    }
}

impl Visitor for Walk {
    type Break = Unknown;

    fn pre_visit_statement(&mut self, statement: &Statement) -> ControlFlow<Unknown> {
        self.statement(statement)
    }

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<Unknown> {
        if let Some((scope, place)) = self.entered(query)
            && !scope.recursive
        {
            scope.visible = place;
        }
        if let Some(with) = &query.with {
            if with.cte_tables.len() > MAX_NAMES {
                return ControlFlow::Break(Unknown);
            }
            let names: Vec<_> = with.cte_tables.iter().map(|table| table.alias.name.value.clone()).collect();
            let queries = with.cte_tables.iter().map(|table| std::ptr::from_ref(&*table.query)).collect();
            let visible = names.len();
            self.scopes.push(Scope { names, queries, recursive: with.recursive, visible });
        }
        if !query.locks.is_empty() {
            self.command.classes.insert(Classes::LOCKS);
        }
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, query: &Query) -> ControlFlow<Unknown> {
        if query.with.is_some() {
            self.scopes.pop();
        }
        if let Some((scope, _)) = self.entered(query) {
            scope.visible = scope.names.len();
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<Unknown> {
        if select.into.is_some() {
            return ControlFlow::Break(Unknown);
        }
        let reads = if select.from.is_empty() { Classes::NONE } else { Classes::READS };
        self.verb("select", reads)
    }

    fn pre_visit_relation(&mut self, name: &ObjectName) -> ControlFlow<Unknown> {
        if self.is_local(name) { ControlFlow::Continue(()) } else { self.object(name) }
    }

    fn pre_visit_expr(&mut self, expression: &Expr) -> ControlFlow<Unknown> {
        match expression {
            Expr::Function(function) => self.call(function),
            _ => ControlFlow::Continue(()),
        }
    }
}

/// What a SET changes of how later texts are read, and what it may do beside changing settings.
fn setting(set: &Set) -> (Effect, Classes) {
    let text = set.to_string().to_ascii_lowercase();
    // How strings and names are quoted hangs on it.
    let modes = text.contains("sql_mode");
    let encodes = ["character_set_client", "character set", "charset", "names"];
    let encodes = encodes.iter().any(|name| text.contains(name)) || matches!(set, Set::SetNamesDefault {});
    let effect = match set {
        Set::SetNames { charset_name, .. } => Effect::Encodes(is_safe_encoding(&charset_name.value)),
        _ if modes && encodes => Effect::Unsettles,
        _ if modes => Effect::Modes,
        _ if encodes => Effect::Encodes(false),
        _ => Effect::None,
    };
    let assigns_password = match set {
        Set::SingleAssignment { variable, .. } => {
            variable.to_string().to_ascii_lowercase().starts_with("password")
        }
        _ => text.contains("password"),
    };
    let classes = match set {
        Set::SetRole { .. } | Set::SetSessionAuthorization(_) => Classes::IDENTITY,
        _ if assigns_password => Classes::GRANTS,
        _ => Classes::NONE,
    };
    (effect, classes)
}

/// Adds a name once, unless there are too many.
fn add(names: &mut Vec<String>, name: String) -> ControlFlow<Unknown> {
    if !names.contains(&name) {
        names.push(name);
    }
    if names.len() > MAX_NAMES { ControlFlow::Break(Unknown) } else { ControlFlow::Continue(()) }
}

/// A name with dots between its parts, quoted where it has one itself.
fn written(name: &ObjectName) -> Option<String> {
    let part = |part: &sqlparser::ast::ObjectNamePart| {
        let value = &part.as_ident()?.value;
        Some(if value.contains(['.', '`']) {
            format!("`{}`", value.replace('`', "``"))
        } else {
            value.clone()
        })
    };
    Some(name.0.iter().map(part).collect::<Option<Vec<_>>>()?.join("."))
}
