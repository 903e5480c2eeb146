use shop;
drop table if exists goods;
create table goods (id int unsigned primary key auto_increment, name varchar(40), price decimal(8,2), made datetime(6), raw blob);
insert into goods (name, price) values ('a', 1.5), ('b', 2.25), ('ümlaut ☃', null);
select * from goods;
select * from nothing;
update goods set price = price * 2;
-- a comment of its own
select /* within */ 1; select 2;
start transaction;
delete from goods where id = 3;
rollback;
delimiter //
create procedure two() begin select 1 as a; select 2 as b union select 3; end//
delimiter ;
call two();
insert into goods (id, name) values (1, 'again');
insert ignore into goods (id, name) values (1, 'again');
show warnings;
select 'x' into @v;
selec nonsense;
truncate goods;
drop procedure two;
