create table payments (id int primary key, customer text not null, cents bigint not null);
insert into payments values (1, 'Ada', 1250), (2, 'Grace', 99900);
update payments set cents = cents + 1 where customer = 'Ada';
select customer, cents from payments where cents > 1000 order by id;
select * from credit_cards;
copy payments (id, customer, cents) from stdin;
3	Barbara	4200
4	Edsger	700
\.
