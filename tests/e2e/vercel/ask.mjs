// Asks one question through each provider of the Vercel AI SDK, whole and streamed, and prints
// what it heard. Settings come as JSON on stdin, so that no key is in a process's arguments.
import { createAmazonBedrock } from "@ai-sdk/amazon-bedrock";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { embedMany, generateText, streamText } from "ai";
import { readFileSync } from "node:fs";

const { url, key, accessKeyId, secretAccessKey, model, prompt } = JSON.parse(
  readFileSync(0, "utf8"),
);
const openai = createOpenAI({ baseURL: `${url}/v1`, apiKey: key });
const bedrock = { baseURL: url, region: "us-east-1" };
const models = {
  "openai chat": openai.chat(model),
  "openai responses": openai.responses(model),
  anthropic: createAnthropic({ baseURL: `${url}/v1`, apiKey: key })(model),
  "bedrock bearer": createAmazonBedrock({ ...bedrock, apiKey: key })(model),
  "bedrock signed": createAmazonBedrock({
    ...bedrock,
    apiKey: "",
    accessKeyId,
    secretAccessKey,
  })(model),
};

const heard = {};
for (const [name, asked] of Object.entries(models)) {
  const options = { model: asked, prompt, maxOutputTokens: 12, temperature: 0, maxRetries: 0 };
  const whole = await generateText(options);
  const pieces = [];
  const stream = streamText({ ...options, onError: ({ error }) => { throw error; } });
  for await (const piece of stream.textStream) pieces.push(piece);
  heard[name] = {
    text: whole.text,
    reason: whole.finishReason,
    usage: whole.usage,
    streamed: pieces.join(""),
    streamedReason: await stream.finishReason,
    streamedUsage: await stream.usage,
  };
}

const vectors = {};
for (const [name, asked] of Object.entries({
  openai: openai.embeddingModel(model),
  bedrock: createAmazonBedrock({ ...bedrock, apiKey: key }).embeddingModel(model),
})) {
  const made = await embedMany({ model: asked, values: [prompt, "so"], maxRetries: 0 });
  vectors[name] = { embeddings: made.embeddings, tokens: made.usage.tokens };
}
console.log(JSON.stringify({ heard, vectors }));
