// The AI SDK with @ai-sdk/openai-compatible against the running server.

import assert from 'node:assert/strict';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { Output, generateText, streamText } from 'ai';
import { z } from 'zod';
import { LONG, eventually, recording, run, unit } from './unit.mjs';

const prompt = 'What is hashprice?';
const asked = { prompt, maxOutputTokens: 24, seed: 1 };
const schema = z.object({ serve: z.boolean(), watts: z.number().int().min(0).max(999) });

function provider(at, how = recording()) {
  return createOpenAICompatible({
    name: 'hashwatt', baseURL: at.url, apiKey: 'none', includeUsage: true, supportsStructuredOutputs: true, fetch: how.fetch,
  });
}
/** A model that answers as long as the context allows. */
function endless(at) {
  const longer = async (url, init) =>
    fetch(url, { ...init, body: JSON.stringify({ ...JSON.parse(init.body), max_tokens: LONG, ignore_eos: true }) });
  return provider(at, { fetch: longer })('demo');
}
/** The parts of a stream, until `seen` says stop; errors are parts too. */
async function parts(result, seen = () => {}) {
  const all = [];
  for await (const part of result.fullStream) {
    all.push(part);
    seen(all);
  }
  return all;
}

const main = await unit();

await run({
  async 'whole answers'() {
    const answer = await generateText({ ...asked, model: provider(main)('demo') });
    assert.ok(answer.text && ['stop', 'length'].includes(answer.finishReason));
    assert.equal(answer.usage.totalTokens, answer.usage.inputTokens + answer.usage.outputTokens);
    const text = await generateText({ ...asked, model: provider(main).completionModel('demo') });
    assert.ok(text.text);
  },

  async 'streams and usage'() {
    const result = streamText({ ...asked, model: provider(main)('demo') });
    const all = await parts(result);
    assert.ok(all.filter((part) => part.type === 'text-delta').length > 8);
    assert.ok(!all.some((part) => part.type === 'error'), JSON.stringify(all));
    assert.ok((await result.usage).outputTokens > 8);
  },

  async 'parsed structured output'() {
    for (const temperature of [0, 1.5]) {
      const output = Output.object({ schema });
      const answer = await generateText({ ...asked, maxOutputTokens: 200, temperature, output, model: provider(main)('demo') });
      schema.parse(answer.output);
    }
    const result = streamText({ ...asked, maxOutputTokens: 200, output: Output.object({ schema }), model: provider(main)('demo') });
    for await (const _ of result.partialOutputStream);
    schema.parse(await result.output);
  },

  async "refusals are the client's errors"() {
    const here = recording();
    await assert.rejects(
      generateText({ ...asked, model: provider(main, here)('other') }),
      (e) => e.statusCode === 404 && /does not exist/.test(e.message) && e.data.error.code === 'model_not_found',
    );
    assert.deepEqual(here.statuses, [404]);
  },

  async 'a full queue is retried'() {
    const at = await unit('--max-num-seqs', '1', '--max-queue', '1');
    const leaving = new AbortController();
    const model = endless(at);
    const full = [1, 2].map(() => parts(streamText({ prompt, model, abortSignal: leaving.signal, onError() {} })));
    await eventually('the unit is full', async () => (await at.running()) === 2);
    await assert.rejects(
      generateText({ ...asked, model: provider(at)('demo'), maxRetries: 0 }),
      (e) => e.statusCode === 503 && e.isRetryable,
    );
    const patient = recording();
    const asking = generateText({ ...asked, model: provider(at, patient)('demo'), maxRetries: 5 });
    await eventually('it was refused', () => patient.statuses.includes(503));
    leaving.abort();
    await Promise.allSettled(full);
    assert.ok((await asking).text);
    assert.equal(patient.statuses.at(-1), 200);
    await at.stop();
  },

  async 'an error in the midst of a stream'() {
    const at = await unit('--drain-timeout', '100ms');
    const result = streamText({ prompt, model: endless(at), onError() {} });
    let told = false;
    const all = await parts(result, (seen) => {
      if (!told && seen.some((part) => part.type === 'text-delta')) told = at.signal('SIGTERM');
    });
    const error = all.find((part) => part.type === 'error');
    assert.match(JSON.stringify(error?.error) + error?.error?.message, /shutting down/);
    assert.equal(await at.ended, 0);
  },

  async 'leaving frees the sequence'() {
    const leaving = new AbortController();
    const left = parts(streamText({ prompt, model: endless(main), abortSignal: leaving.signal, onError() {} }));
    await eventually('it runs', async () => (await main.running()) === 1);
    leaving.abort();
    await Promise.allSettled([left]);
    await eventually('the sequence is gone', async () => (await main.running()) === 0);
  },
});
