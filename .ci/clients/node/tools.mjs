// Tools, by openai for Node and the AI SDK: calls, streamed calls, and their results sent back.

import assert from 'node:assert/strict';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateText, stepCountIs, streamText, tool } from 'ai';
import OpenAI from 'openai';
import { zodFunction } from 'openai/helpers/zod';
import { z } from 'zod';
import { recording, run, unit } from './unit.mjs';

const prompt = 'Limit the power.';
const messages = [{ role: 'user', content: prompt }];
const Limit = z.object({ watts: z.union([z.literal(100), z.literal(200)]), board: z.enum(['left', 'right']) });
const tools = [zodFunction({ name: 'set_limit', parameters: Limit })];
const asked = { model: 'demo', messages, tools, max_tokens: 400, seed: 1 };

const main = await unit();
const client = new OpenAI({ baseURL: main.url, apiKey: 'none', fetch: recording().fetch });
const model = createOpenAICompatible({
  name: 'hashwatt', baseURL: main.url, apiKey: 'none', fetch: recording().fetch,
})('demo');

await run({
  async 'openai: calls, whole and streamed'() {
    for (const tool_choice of ['required', { type: 'function', function: { name: 'set_limit' } }]) {
      const answer = await client.chat.completions.parse({ ...asked, tool_choice });
      const [call] = answer.choices[0].message.tool_calls;
      Limit.parse(call.function.parsed_arguments);
      assert.match(call.id, /^call_/);
      const final = await client.chat.completions.stream({ ...asked, tool_choice }).finalChatCompletion();
      const [streamed] = final.choices[0].message.tool_calls;
      assert.equal(streamed.function.arguments, call.function.arguments);
    }
  },

  async 'openai: a round trip'() {
    const { message } = (await client.chat.completions.create({ ...asked, tool_choice: 'required' })).choices[0];
    const results = message.tool_calls.map((call) => ({ role: 'tool', tool_call_id: call.id, content: 'done' }));
    const again = { ...asked, messages: [...messages, message, ...results], tool_choice: 'none', max_tokens: 16 };
    assert.ok((await client.chat.completions.create(again)).choices[0].message.content);
  },

  async 'AI SDK: a round trip in two steps'() {
    const run = [];
    const set_limit = tool({
      description: 'Limits the power',
      inputSchema: Limit,
      execute: async (input) => {
        run.push(Limit.parse(input));
        return { done: true };
      },
    });
    const ask = {
      model, prompt, seed: 1, maxOutputTokens: 400, tools: { set_limit }, stopWhen: stepCountIs(2),
      prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? 'required' : 'none' }),
    };
    const answer = await generateText(ask);
    assert.equal(answer.steps.length, 2);
    assert.ok(run.length > 0 && answer.text);
    const result = streamText(ask);
    const types = [];
    for await (const part of result.fullStream) types.push(part.type);
    assert.ok(types.includes('tool-call') && types.includes('tool-result') && !types.includes('error'), types.join());
  },
});
