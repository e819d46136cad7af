// One image for each model of stdin's {url, key, models}, all at once, with the client's own retries; JSON to stdout.
import OpenAI from "openai";

let given = "";
for await (const chunk of process.stdin) given += chunk;
const { url, key, models } = JSON.parse(given);
const client = new OpenAI({ baseURL: url, apiKey: key });

async function order(model) {
  try {
    const reply = await client.images.generate({ model, prompt: "x" });
    return { model, status: 200, error: null, code: null, images: reply.data.length };
  } catch (error) {
    return { model, status: error.status, error: error.constructor.name, code: error.code, images: 0 };
  }
}

console.log(JSON.stringify(await Promise.all(models.map(order))));
