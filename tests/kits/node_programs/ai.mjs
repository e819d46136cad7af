// Vercel's AI SDK with its own retries: one image for each of stdin's {url, key, orders: [{provider, model}]}, all at
// once; how each ended in the eyes of its user, and the errors of its tries, as JSON to stdout.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateImage } from "ai";

globalThis.AI_SDK_LOG_WARNINGS = false;
let given = "";
for await (const chunk of process.stdin) given += chunk;
const { url, key, orders } = JSON.parse(given);
const providers = {
  openai: createOpenAI({ baseURL: url, apiKey: key }),
  compatible: createOpenAICompatible({ name: "geekhub", baseURL: url, apiKey: key }),
};

async function order({ provider, model }) {
  try {
    const { images } = await generateImage({ model: providers[provider].imageModel(model), prompt: "un faro" });
    return { model, images: images.map((image) => image.base64), errors: [] };
  } catch (error) {
    const errors = (error.errors ?? [error]).map((one) => ({ status: one.statusCode ?? null, message: one.message }));
    return { model, images: [], errors };
  }
}

console.log(JSON.stringify(await Promise.all(orders.map(order))));
