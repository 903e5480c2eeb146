//! PostgreSQL's functions that do more than compute, and which functions are its own.
//!
//! A name is all that the text has: which function it is depends on types and on what is in the search path. A function of an
//! agent's own making that is called like one of the server's, and fits better, is taken for the server's.

use std::collections::HashSet;
use std::sync::LazyLock;

use crate::statement::Classes;

/// Names of the functions in `pg_catalog`, of PostgreSQL 15 as Debian has it, and some of later versions.
static OWN: LazyLock<HashSet<&str>> = LazyLock::new(|| include_str!("functions.txt").lines().collect());

/// What a call may do. `schema`: as written.
pub(super) fn classes(schema: Option<&str>, name: &str) -> Classes {
    let mut classes = known(name);
    // Extensions that have a schema of their own.
    match schema {
        Some("cron") => classes.insert(Classes::EXECUTES),
        Some("aws_s3" | "aws_lambda" | "net" | "http" | "dblink") => classes.insert(Classes::CONNECTS),
        _ => {}
    }
    // Extensions' functions may be in any schema; the server's own are in one.
    if schema.is_some_and(|schema| schema != "pg_catalog") || !OWN.contains(name) {
        classes.insert(Classes::CALLS);
    }
    classes
}

fn known(name: &str) -> Classes {
    match name {
        "pg_read_file"
        | "pg_read_binary_file"
        | "pg_stat_file"
        | "pg_hba_file_rules"
        | "pg_ident_file_mappings"
        | "pg_file_settings"
        | "pg_show_all_file_settings"
        | "pg_current_logfile"
        | "pg_logdir_ls" => Classes::READS_FILES,
        _ if name.starts_with("pg_ls_") => Classes::READS_FILES,
        "lo_import" => Classes::READS_FILES | Classes::WRITES,
        "lo_export" | "pg_file_write" | "pg_file_unlink" | "pg_file_rename" | "pg_file_sync"
        | "pg_export_snapshot" => Classes::WRITES_FILES,
        "nextval"
        | "setval"
        | "lo_create"
        | "lo_creat"
        | "lo_unlink"
        | "lo_put"
        | "lo_from_bytea"
        | "lowrite"
        | "lo_truncate"
        | "lo_truncate64"
        | "pg_logical_emit_message"
        | "pg_import_system_collations"
        | "pg_restore_relation_stats"
        | "pg_restore_attribute_stats"
        | "pg_clear_relation_stats"
        | "pg_clear_attribute_stats"
        | "brin_summarize_new_values"
        | "gin_clean_pending_list" => Classes::WRITES,
        "lo_open"
        | "lo_get"
        | "loread"
        | "table_to_xml"
        | "table_to_xmlschema"
        | "table_to_xml_and_xmlschema"
        | "schema_to_xml"
        | "schema_to_xmlschema"
        | "schema_to_xml_and_xmlschema"
        | "database_to_xml"
        | "database_to_xmlschema"
        | "database_to_xml_and_xmlschema"
        | "get_raw_page" => Classes::READS,
        // SQL in a string.
        "query_to_xml"
        | "query_to_xmlschema"
        | "query_to_xml_and_xmlschema"
        | "cursor_to_xml"
        | "ts_stat"
        | "ts_rewrite"
        | "crosstab"
        | "crosstab2"
        | "crosstab3"
        | "crosstab4"
        | "connectby"
        | "xpath_table"
        | "run_command_on_workers"
        | "exec"
        | "sys_exec"
        | "sys_eval"
        | "plpgsql_call_handler" => Classes::EXECUTES,
        _ if name.starts_with("dblink") => Classes::EXECUTES | Classes::CONNECTS,
        "postgres_fdw_get_connections"
        | "postgres_fdw_disconnect"
        | "http"
        | "http_get"
        | "http_post"
        | "http_put"
        | "http_delete"
        | "http_patch"
        | "http_head"
        | "urlencode_post"
        | "query_s3" => Classes::CONNECTS,
        "set_config"
        | "pg_reload_conf"
        | "pg_rotate_logfile"
        | "pg_switch_wal"
        | "pg_promote"
        | "pg_create_restore_point"
        | "pg_backup_start"
        | "pg_backup_stop"
        | "pg_start_backup"
        | "pg_stop_backup"
        | "pg_wal_replay_pause"
        | "pg_wal_replay_resume"
        | "pg_create_physical_replication_slot"
        | "pg_create_logical_replication_slot"
        | "pg_copy_physical_replication_slot"
        | "pg_copy_logical_replication_slot"
        | "pg_drop_replication_slot"
        | "pg_replication_slot_advance"
        | "pg_sync_replication_slots"
        | "setseed" => Classes::SETTINGS,
        "pg_logical_slot_get_changes"
        | "pg_logical_slot_get_binary_changes"
        | "pg_logical_slot_peek_changes"
        | "pg_logical_slot_peek_binary_changes" => Classes::READS | Classes::SETTINGS,
        _ if name.starts_with("pg_stat_reset") || name.starts_with("pg_replication_origin_") => {
            Classes::SETTINGS
        }
        "pg_terminate_backend" | "pg_cancel_backend" => Classes::ENDS_SESSIONS,
        "pg_sleep" | "pg_sleep_for" | "pg_sleep_until" => Classes::SLEEPS,
        _ if name.starts_with("pg_advisory_") || name.starts_with("pg_try_advisory_") => Classes::LOCKS,
        _ => Classes::NONE,
    }
}
