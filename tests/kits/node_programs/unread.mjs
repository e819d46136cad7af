// Bodies that are answered before they are read, `times` times each, from stdin's {url, key, times}; JSON to stdout.
import OpenAI, { toFile } from "openai";

let given = "";
for await (const chunk of process.stdin) given += chunk;
const { url, key, times } = JSON.parse(given);
const client = new OpenAI({ baseURL: url, apiKey: key, maxRetries: 0 });
const large = JSON.stringify({ model: "fal/flux-1.1-pro", prompt: "x".repeat(5 * 1024 * 1024) });

async function fetched(key) {
  try {
    const headers = { authorization: `Bearer ${key}`, "content-type": "application/json" };
    const reply = await fetch(`${url}/images/generations`, { method: "POST", headers, body: large });
    return [reply.status, (await reply.json()).error.code];
  } catch (error) {
    return [null, String(error.cause ?? error)];
  }
}

const ends = { fetch: [], unknown: [], edit: [], said: [] };
for (let time = 0; time < times; time++) {
  ends.fetch.push(await fetched(key));
  ends.unknown.push(await fetched("ghub_sk_x"));
  try {
    const image = await toFile(Buffer.alloc(77 * 1024), "image.png", { type: "image/png" });
    await client.images.edit({ model: "openai/gpt-image-1", image, prompt: "x" });
  } catch (error) {
    ends.edit.push([error.status ?? null, error.code ?? String(error.cause ?? error)]);
    ends.said.push(error.message);
  }
}
console.log(JSON.stringify(ends));
