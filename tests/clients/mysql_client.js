// Talks to MariaDB with mysql2 on node, and prints what came of each statement: rows, or a SQLSTATE.
//
// WAY (plain, compressed, tls) HOST PORT AUTHORITY
const fs = require("node:fs");
const mysql = require("mysql2/promise");

const [way, host, port, authority] = process.argv.slice(2);
console.error(`pid ${process.pid}`);

async function main() {
  const login = { user: "shopkeeper", password: "not-in-any-record", database: "shop" };
  const options = { host, port: Number(port), compress: way === "compressed", multipleStatements: true, ...login };
  if (way === "tls") options.ssl = { ca: fs.readFileSync(authority, "utf8"), servername: "localhost" };
  const connection = await mysql.createConnection(options);
  const attempt = async (step) => {
    try {
      const [result] = await step();
      console.log("said", Array.isArray(result) ? result.length : result.affectedRows);
    } catch (error) {
      console.log("said", error.sqlState ?? "failed");
    }
  };
  await attempt(() => connection.query("create temporary table words (number int, word text)"));
  await attempt(() => connection.execute("select ? as a, ? as b, ? as c", [1, "two 'quoted'", null]));
  for (let number = 0; number < 100; number++) {
    await attempt(() => connection.execute("insert into words values (?, ?)", [number, `node ${number} ☃`]));
    await attempt(() => connection.query(`select * from words where number = ${number}`));
  }
  await attempt(() => connection.execute("select * from nowhere where x = ?", [1]));
  await attempt(() => connection.query("select * from nowhere"));
  await attempt(() => connection.query('select repeat("abc", 20000) as r'));
  await connection.ping();
  const together = [1, 2, 3].map((number) => attempt(() => connection.query(`select ${number}`)));
  await Promise.all(together);
  await connection.changeUser({ ...login, database: "mysql" });
  await attempt(() => connection.query("select database()"));
  await connection.end();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
