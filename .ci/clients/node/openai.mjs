// openai for Node against the running server.

import assert from 'node:assert/strict';
import OpenAI, { APIError, BadRequestError, InternalServerError, NotFoundError } from 'openai';
import { zodResponseFormat } from 'openai/helpers/zod';
import { z } from 'zod';
import { LONG, eventually, recording, run, unit } from './unit.mjs';

const messages = [{ role: 'user', content: 'What is hashprice?' }];
const asked = { model: 'demo', messages, max_tokens: 24, seed: 1 };
const endless = { ...asked, max_tokens: LONG, ignore_eos: true };
const client = (at, options = {}) => new OpenAI({ baseURL: at.url, apiKey: 'none', ...recording(), ...options });
const Report = z.object({
  readings: z.array(z.object({ watts: z.number().int().min(0).max(999), state: z.enum(['serving', 'parked']) })).min(1).max(2),
  note: z.string().max(20).nullable(),
});

const main = await unit();

await run({
  async 'models'() {
    const ids = [];
    for await (const model of client(main).models.list()) ids.push(model.id);
    assert.deepEqual(ids, ['demo']);
  },

  async 'whole answers'() {
    const answer = await client(main).chat.completions.create({ ...asked, n: 2 });
    assert.equal(answer.choices.length, 2);
    assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
    assert.ok(answer._request_id);
    const text = await client(main).completions.create({ model: 'demo', prompt: ['Hashprice', 'PUE'] });
    assert.equal(text.choices.length, 2);
  },

  async 'streams and usage'() {
    const stream = await client(main).chat.completions.create({
      ...asked, stream: true, stream_options: { include_usage: true },
    });
    let text = '';
    let usage = null;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? '';
      usage ??= chunk.usage;
      assert.ok(!usage || chunk.choices.length === 0);
    }
    const whole = await client(main).chat.completions.create(asked);
    assert.equal(text, whole.choices[0].message.content);
    assert.deepEqual(usage.completion_tokens, whole.usage.completion_tokens);
  },

  async 'parsed structured output'() {
    const ask = { ...asked, max_tokens: 300, response_format: zodResponseFormat(Report, 'report') };
    for (const temperature of [0, 1.5]) {
      const answer = await client(main).chat.completions.parse({ ...ask, temperature });
      Report.parse(answer.choices[0].message.parsed);
    }
    const final = await client(main).chat.completions.stream(ask).finalChatCompletion();
    Report.parse(final.choices[0].message.parsed);
  },

  async "refusals are the client's errors"() {
    const here = recording();
    const create = (more) => client(main, here).chat.completions.create({ ...asked, ...more });
    await assert.rejects(create({ temperature: 3 }), (e) => e instanceof BadRequestError && e.param === 'temperature');
    await assert.rejects(create({ model: 'other' }), (e) => e instanceof NotFoundError && e.code === 'model_not_found');
    assert.deepEqual(here.statuses, [400, 404]);
  },

  async 'a full queue is retried'() {
    const at = await unit('--max-num-seqs', '1', '--max-queue', '1');
    const streams = [];
    for (const _ of [1, 2]) {
      streams.push(await client(at).chat.completions.create({ ...endless, stream: true }));
    }
    await eventually('the unit is full', async () => (await at.running()) === 2);
    await assert.rejects(
      client(at, { maxRetries: 0 }).chat.completions.create(asked),
      (e) => e instanceof InternalServerError && e.status === 503 && e.code === 'server_overloaded',
    );
    const patient = recording();
    const asking = client(at, { ...patient, maxRetries: 8 }).chat.completions.create(asked);
    await eventually('it was refused', () => patient.statuses.includes(503));
    for (const stream of streams) stream.controller.abort();
    assert.ok((await asking).choices[0].message.content);
    assert.equal(patient.statuses.at(-1), 200);
    await at.stop();
  },

  async 'an error in the midst of a stream'() {
    const at = await unit('--drain-timeout', '100ms');
    const stream = await client(at).chat.completions.create({ ...endless, stream: true });
    await assert.rejects(
      async () => {
        let chunks = 0;
        for await (const _ of stream) if (chunks++ === 3) at.signal('SIGTERM');
      },
      (e) => e instanceof APIError && e.code === 'draining',
    );
    assert.equal(await at.ended, 0);
  },

  async 'leaving frees the sequence'() {
    const stream = await client(main).chat.completions.create({ ...endless, stream: true });
    for await (const _ of stream) break;
    await eventually('the sequence is gone', async () => (await main.running()) === 0);
    const leaving = new AbortController();
    const asking = client(main).chat.completions.create(endless, { signal: leaving.signal });
    await eventually('it runs', async () => (await main.running()) === 1);
    leaving.abort();
    await assert.rejects(asking);
    await eventually('the sequence is gone', async () => (await main.running()) === 0);
  },
});
