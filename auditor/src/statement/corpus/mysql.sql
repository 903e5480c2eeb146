select 1
-> select

SELECT * FROM users
-> select | users | reads

select * from shop.users u join orders o on o.user_id = u.id
-> select | shop.users orders | reads

select * from `we``ird`.`Na.me`
-> select | `we``ird`.`Na.me` | reads

select (select max(x) from hidden) from t
-> select | hidden t | reads

select * from t where x in (select y from u) union select * from v
-> select | t u v | reads

with a as (select * from a) select * from a
-> select | a | reads

with recursive a as (select 1 union all select * from a) select * from a
-> select |  | reads

with a as (select 1), b as (select * from a) select * from b, c
-> select | c | reads

insert into t values (1, 'a'), (2, 'b')
-> insert | t | writes

insert into t (a) select b from u
-> insert select | t u | reads writes

insert into t values (1) on duplicate key update a = 2
-> insert update | t | writes

replace into t values (1)
-> replace | t | writes

insert ignore into t values (1)
-> insert | t | writes

update t set a = 1
-> update | t | writes

update a join b on a.id = b.id set a.x = 1
-> update | a b | writes

delete from t
-> delete | t | writes

delete a from a join b on a.id = b.id
-> delete | a b | writes

delete from t where id in (select id from u) limit 10
-> delete select | t u | reads writes

truncate table t
-> truncate | t | writes

create table t (id int primary key auto_increment, b varchar(10) default 'x') engine=innodb
-> create | t | defines

create table t as select * from u
-> create select | t u | reads writes defines

create table t like u
-> create | t | defines

create index i on t (a)
-> create | t | defines

create view v as select * from t
-> create select | v t | reads defines

create database d
-> create | d | defines

drop table if exists a, b.c
-> drop | a b.c | writes defines

drop database d
-> drop | d | writes defines

drop view v
-> drop | v | writes defines

drop index i on t
-> drop | i | writes defines

alter table t add column a int
-> alter | t | defines

alter table t rename to u
-> alter | t | defines

rename table a to b
-> rename | a | defines

create user 'u'@'%' identified by 'x'
-> unclassified: syntax

drop user u
-> drop | u | defines grants

grant all privileges on *.* to 'u'@'%'
-> grant | *.* | grants

grant select on shop.t to u
-> grant | shop.t | grants

revoke all on t from u
-> revoke | t | grants

set @a = 1
-> set |  | settings

set global general_log = 0
-> set |  | settings

set names utf8mb4
-> set |  | settings

use shop
-> use |  | settings

call p(1)
-> call |  | calls | p

prepare s from 'delete from t'
-> unclassified: syntax

execute s
-> execute |  | executes
-> unclassified: prepared

deallocate prepare s
-> deallocate

kill 5
-> kill |  | ends-sessions

flush tables
-> flush |  | settings

lock tables t write
-> lock | t | locks

unlock tables
-> unlock

explain select * from t
-> explain select | t

explain delete from t
-> explain delete | t

describe t
-> explain | t

start transaction
-> begin

begin
-> begin

commit
-> commit

rollback
-> rollback

savepoint a
-> savepoint

show tables
-> show

show databases
-> show

show variables like 'x'
-> show

show create table t
-> show

show processlist
-> show

show grants
-> show

select load_file('/etc/passwd')
-> select |  | reads-files | load_file

select sleep(10)
-> select |  | sleeps | sleep

select benchmark(100000, md5('a'))
-> select |  | sleeps | benchmark

select get_lock('a', 1)
-> select |  | locks | get_lock

select shop.my_function(1)
-> select |  | calls | shop.my_function

select my_function(1)
-> select |  | calls | my_function

select count(*), now(), concat(a, 'b') from t
-> select | t | reads

select * from t for update
-> select | t | reads locks

select * into outfile '/tmp/x' from t
-> unclassified: syntax

load data infile '/etc/passwd' into table t
-> unclassified: syntax

load data local infile 'x' into table t
-> unclassified: syntax

/*!50000 delete from t */
-> unclassified: syntax

select 1 /*! union select * from secret */
-> unclassified: syntax

select 1 -- delete from t
-> select

select 1 # delete from t
-> select

select 'it\'s' from t
-> select | t | reads

select "delete from t"
-> select

select 'a' 'b'
-> select

select 1; delete from t
-> select
-> delete | t | writes

do sleep(1)
-> unclassified: syntax

handler t open
-> unclassified: syntax

xa start 'a'
-> unclassified: syntax

create procedure p() begin delete from t; end
-> unclassified: syntax

create trigger g before insert on t for each row set @a = 1
-> unclassified: syntax

selec 1
-> unclassified: syntax

select 1 end from mysql.user
-> unclassified: syntax

select 1 end into outfile '/tmp/x'
-> unclassified: syntax

select 1 end; drop table t
-> unclassified: syntax

select 1 /* /* */ /*M! into outfile '/tmp/x' */
-> unclassified: syntax

select 1 /* /* */ /*! into outfile '/tmp/x' */
-> unclassified: syntax

select 1 /* /* */ , 2 from t
-> select | t | reads

select '/*', 1 /*!50000 into outfile '/tmp/x' */
-> unclassified: syntax

set password = 'x'
-> set |  | grants settings

set role admin
-> set |  | identity settings

select setval(s, 5)
-> select |  | writes | setval

explain select * from (select sys_exec('id')) x
-> explain select |  | executes calls | sys_exec
