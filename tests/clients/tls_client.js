// A client for node and bun: `pg`, with its own TLS in the runtime.
//
// ADDRESS PORT NAME AUTHORITY CONNECTIONS STATEMENTS TAG: connections at once, and that many statements on each, all of them different.
const fs = require("node:fs");
const { Client } = require("pg");

const [host, port, servername, authority, connections, statements, tag] = process.argv.slice(2);
console.error(`pid ${process.pid}`);

async function converse(number, together) {
  const ssl = { ca: fs.readFileSync(authority, "utf8"), servername };
  const client = new Client({ host, port: Number(port), user: "postgres", database: "postgres", ssl });
  await client.connect();
  await together();
  for (let count = 0; count < Number(statements); count++) {
    const text = `select '${tag} ${number}/${count} ☃'`;
    await client.query(text);
    await client.query({ text: `${text} || $1`, values: ["bound"] });
  }
  await client.end();
}

async function main() {
  const count = Number(connections);
  let open = 0;
  let release;
  const all = new Promise((resolve) => (release = resolve));
  const together = () => (++open === count && release(), all);
  await Promise.all(Array.from({ length: count }, (_, number) => converse(number, together)));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
