// Asks an HTTP server with node's own clients: `fetch` or `http2`, BASE, how often. Prints how many requests were made.
"use strict";

const [way, base, rounds] = process.argv.slice(2);
const secrets = { authorization: "Bearer s3cret", cookie: "sid=s3cret" };

async function fetching() {
  let made = 0;
  for (let turn = 0; turn < Number(rounds); turn++) {
    const asked = [
      () => fetch(`${base}/short.txt?turn=${turn}&api_key=s3cret`, { headers: secrets }),
      () => fetch(`${base}/long.txt`),
      () => fetch(`${base}/gone`),
      () => fetch(`${base}/away`, { redirect: "manual" }),
      () => fetch(`${base}/take`, { method: "POST", body: "z".repeat(3000) }),
      () => fetch(`${base}/nothing`, { method: "DELETE" }),
    ];
    for (const ask of asked) {
      await (await ask()).arrayBuffer();
      made++;
    }
    await Promise.all(asked.map(async (ask) => { await (await ask()).arrayBuffer(); made++; }));
  }
  return made;
}

async function streams() {
  const http2 = require("http2");
  const session = http2.connect(base);
  let made = 0;
  const ask = (fields, body) => new Promise((resolve, reject) => {
    const stream = session.request(fields, { endStream: body === undefined });
    stream.on("error", reject);
    stream.on("end", () => { made++; resolve(); });
    stream.resume();
    if (body !== undefined) stream.end(body);
  });
  for (let turn = 0; turn < Number(rounds); turn++) {
    await Promise.all([
      ask({ ":path": `/short.txt?turn=${turn}&sig=s3cret`, ...secrets }),
      ask({ ":path": "/long.txt", "user-agent": "node" }),
      ask({ ":path": "/gone" }),
      ask({ ":path": "/take", ":method": "POST" }, "w".repeat(70000)),
      ask({ ":path": "/nothing", ":method": "DELETE" }),
    ]);
  }
  session.close();
  return made;
}

(way === "http2" ? streams() : fetching()).then((made) => console.log(made));
