mod conversations;
mod detection;
mod holes;
mod passwords;
mod properties;
mod script;
mod subscriptions;
mod transactions;
