-- A script as people write them: psql sends it statement by statement.
create table people (id int primary key, name text not null, born date);
create index people_by_name on people (name);
insert into people values (1, 'Ada', '1815-12-10'), (2, 'Grace', '1906-12-09'),
       (3, 'Zoë ☃ 名前', null);
select * from people -- a comment at the end
 where name like '%a%' /* and one /* nested */ inside */ order by id;
select $$dollar ' quoted ; with a semicolon$$, $tag$another $$ one$tag$, E'escaped \' quote', U&'d\0061t\+000061';
do $$
declare
    total int := 0;
begin
    for i in 1..10 loop
        total := total + i;
    end loop;
    raise notice 'total %', total;
end
$$;
create function double(n int) returns int language sql as 'select n * 2';
select double(21) \; select double(4) \; select 'three in one message';
selct 'a syntax error';
select * from no_such_table;
select 1 / 0;
insert into people values (1, 'again', null);
begin;
insert into people values (4, 'Edsger', '1930-05-11');
select 1 / 0;
select 'in a failed transaction';
rollback;
begin; update people set name = upper(name) where id = 1; savepoint here; delete from people; rollback to here; commit;
select 'before' \; select 1 / 0 \; select 'never reached';
prepare by_id (int) as select * from people where id = $1;
execute by_id(2);
deallocate by_id;
copy people to stdout;
copy people (id, name) from stdin;
10	Barbara
11	Tab\tand\\backslash
\.
copy people (id, name) from stdin;
12	fine
not a number	broken
\.
declare outside cursor for select 1;
explain select * from people;
listen news;
notify news, 'payload with ''quotes''';
grant select on people to public;
alter table people add column note text default 'none';
truncate people;
drop table people;
;
