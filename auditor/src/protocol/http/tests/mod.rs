mod captures;
mod holes;
mod one;
mod properties;
mod script;
mod two;
