// What a program sends to Redis with ioredis: host, port.
const Redis = require("ioredis");

const [host, port] = process.argv.slice(2);
console.error("pid", process.pid);

async function main() {
  const redis = new Redis({ host, port: Number(port), enableAutoPipelining: true });
  const sets = [];
  for (let number = 0; number < 1000; number++) sets.push(redis.set(`js:${number}`, `value ${number}`));
  await Promise.all(sets);
  await redis.mget("js:1", "js:2", "js:none");
  await redis.pipeline().set("a", Buffer.from([0, 255, 10])).getBuffer("a").lpush("a", 1).exec();
  await redis.multi().set("b", 1).incr("b").lpop("b").exec();
  redis.defineCommand("twice", { numberOfKeys: 1, lua: "return redis.call('get', KEYS[1]) .. ARGV[1]" });
  await redis.twice("b", "x");
  await redis.twice("b", "y");
  await redis.call("NOSUCH").catch(() => {});
  const listener = new Redis({ host, port: Number(port) });
  await listener.subscribe("news", "weather");
  const heard = new Promise((resolve) => listener.on("message", resolve));
  await redis.publish("news", "hi");
  await heard;
  await listener.unsubscribe();
  await listener.quit();
  await redis.quit();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
