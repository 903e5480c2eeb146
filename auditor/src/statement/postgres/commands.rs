//! PostgreSQL's commands: what each is called, and what it may do.

use crate::statement::Classes;

const R: Classes = Classes::READS;
const W: Classes = Classes::WRITES;
const D: Classes = Classes::DEFINES;
const G: Classes = Classes::GRANTS;
const S: Classes = Classes::SETTINGS;
const X: Classes = Classes::EXECUTES;
const C: Classes = Classes::CONNECTS;
const L: Classes = Classes::LOCKS;

/// Verb and classes of a node of the tree that is a command; `None` where it is not known, which a later version's may be.
pub(super) fn command(node: &str) -> Option<(&'static str, Classes)> {
    let none = Classes::NONE;
    Some(match node {
        "SelectStmt" => ("select", none),
        "InsertStmt" => ("insert", W),
        "UpdateStmt" => ("update", W),
        "DeleteStmt" => ("delete", W),
        "MergeStmt" => ("merge", W),
        "TruncateStmt" => ("truncate", W),
        // What they read, write and run is in their fields.
        "CopyStmt" => ("copy", none),
        "ExplainStmt" => ("explain", none),
        "PrepareStmt" => ("prepare", none),
        "ExecuteStmt" => ("execute", none),
        "DeallocateStmt" => ("deallocate", none),
        "TransactionStmt" => ("begin", none),
        "DeclareCursorStmt" => ("declare", none),
        "FetchStmt" => ("fetch", none),
        "ClosePortalStmt" => ("close", none),
        "DoStmt" => ("do", X),
        "CallStmt" => ("call", none),
        "LoadStmt" => ("load", X | Classes::READS_FILES),
        "VariableSetStmt" => ("set", S),
        "VariableShowStmt" => ("show", none),
        "ConstraintsSetStmt" => ("set", S),
        "DiscardStmt" => ("discard", S),
        "ListenStmt" => ("listen", none),
        "UnlistenStmt" => ("unlisten", none),
        "NotifyStmt" => ("notify", none),
        "LockStmt" => ("lock", L),
        "VacuumStmt" => ("vacuum", L),
        "ClusterStmt" => ("cluster", L),
        "ReindexStmt" => ("reindex", L),
        "CheckPointStmt" => ("checkpoint", none),
        "RefreshMatViewStmt" => ("refresh", W),
        "CommentStmt" => ("comment", D),
        "SecLabelStmt" => ("security", D | G),
        "GrantStmt" | "GrantRoleStmt" => ("grant", G),
        "AlterDefaultPrivilegesStmt" => ("alter", G),
        "ReassignOwnedStmt" => ("reassign", D | G),
        "DropOwnedStmt" => ("drop", D | G | W),
        "ImportForeignSchemaStmt" => ("import", D | C),
        "CreateTableAsStmt" => ("create", D | W),
        "CreateForeignServerStmt" | "CreateSubscriptionStmt" => ("create", D | C),
        "AlterForeignServerStmt" | "AlterSubscriptionStmt" => ("alter", D | C),
        "DropSubscriptionStmt" => ("drop", D | C),
        "CreateUserMappingStmt" => ("create", D | C | G),
        "AlterUserMappingStmt" => ("alter", D | C | G),
        "DropUserMappingStmt" => ("drop", D | C | G),
        "CreateRoleStmt" | "CreatePolicyStmt" => ("create", D | G),
        "AlterRoleStmt" | "AlterPolicyStmt" | "AlterOwnerStmt" => ("alter", D | G),
        "DropRoleStmt" => ("drop", D | G),
        "AlterRoleSetStmt" => ("alter", D | G | S),
        "AlterDatabaseSetStmt" => ("alter", D | S),
        // archive_command, ssl_passphrase_command, shared_preload_libraries, …
        "AlterSystemStmt" => ("alter", S | X | Classes::WRITES_FILES),
        "CreateExtensionStmt" => ("create", D | X),
        "AlterExtensionStmt" => ("alter", D | X),
        "CreateTableSpaceStmt" => ("create", D | Classes::WRITES_FILES),
        "DropTableSpaceStmt" => ("drop", D | Classes::WRITES_FILES),
        // A table goes with its rows, or a schema with its tables.
        "DropStmt" | "DropdbStmt" => ("drop", D | W),
        "CreatedbStmt" | "CreateStmt" | "DefineStmt" | "CompositeTypeStmt" | "IndexStmt" | "ViewStmt"
        | "RuleStmt" => ("create", D),
        "RenameStmt" => ("alter", D),
        "ReturnStmt" | "PLAssignStmt" => ("select", R),
        _ if node.starts_with("Create") => ("create", D),
        _ if node.starts_with("Alter") => ("alter", D),
        _ if node.starts_with("Drop") => ("drop", D | W),
        _ => return None,
    })
}

/// Fields of commands that name what these are about, beside tables.
pub(super) const NAMING: [&str; 34] = [
    "objects",
    "object",
    "funcname",
    "func",
    "schemaname",
    "dbname",
    "role",
    "roles",
    "granted_roles",
    "extname",
    "servername",
    "server_name",
    "fdwname",
    "defnames",
    "trigname",
    "policy_name",
    "typeName",
    "domainname",
    "collname",
    "tablespacename",
    "pubname",
    "subname",
    "conditionname",
    "amname",
    "plname",
    "dictname",
    "cfgname",
    "conversion_name",
    "opclassname",
    "opfamilyname",
    "local_schema",
    "portalname",
    "rolename",
    "idxname",
];
