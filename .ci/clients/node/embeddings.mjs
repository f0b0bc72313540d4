// Embeddings, by openai for Node and the AI SDK.

import assert from 'node:assert/strict';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { embedMany } from 'ai';
import OpenAI from 'openai';
import { recording, run, unit } from './unit.mjs';

const texts = ['hashprice', 'What is PUE?'];

await run({
  async 'openai and AI SDK'() {
    const at = await unit('--model', 'synthetic:minilm-tiny');
    const { fetch: recorded } = recording();
    const client = new OpenAI({ baseURL: at.url, apiKey: 'none', fetch: recorded });
    const [{ id: model }] = (await client.models.list()).data;
    // The SDK asks for base64 by itself and decodes it.
    const packed = await client.embeddings.create({ model, input: texts });
    const floats = await client.embeddings.create({ model, input: texts, encoding_format: 'float' });
    const sdk = createOpenAICompatible({ name: 'hashwatt', baseURL: at.url, apiKey: 'none', fetch: recorded });
    const { embeddings } = await embedMany({ model: sdk.embeddingModel(model), values: texts });
    texts.forEach((_, i) => {
      const of = floats.data[i].embedding;
      const same = (other) => other.length === of.length && other.every((x, j) => Math.abs(x - of[j]) < 1e-6);
      assert.ok(same(packed.data[i].embedding) && same(embeddings[i]));
    });
    await at.stop();
  },
});
