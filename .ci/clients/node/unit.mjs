// A server of our own for a test, and what the tests share: waiting, recording answers, running.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { appendFileSync } from 'node:fs';

export const LONG = 3900;

/** A server on a free port, ready. */
export async function unit(...flags) {
  const child = spawn(process.env.HASHWATT, ['serve', '--port', '0', ...flags]);
  let log = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (data) => (log += data));
  let over = false;
  const ended = new Promise((resolve) => child.on('close', resolve)).finally(() => (over = true));
  process.once('exit', () => child.kill('SIGKILL'));
  const root = await eventually('the server listens', () => {
    assert.ok(!over, log);
    return /^ {2}listen {3}(http:\/\/[^/]+)\/v1/m.exec(log)?.[1];
  });
  await eventually('it is ready', async () => (await fetch(`${root}/readyz`)).ok);
  return {
    url: `${root}/v1`,
    root,
    signal: (name) => child.kill(name),
    ended,
    /** Sequences the engines run or hold waiting. */
    async running() {
      const lines = (await (await fetch(`${root}/metrics`)).text()).split('\n');
      const ours = lines.filter((line) => /^hashwatt_requests_(running|waiting)\{/.test(line));
      assert.equal(ours.length, 2);
      return ours.reduce((sum, line) => sum + Number(line.split(' ').at(-1)), 0);
    },
    async stop() {
      child.kill('SIGKILL');
      await ended;
    },
  };
}

/** Waits for what must come; the time is only there so that a fault ends. */
export async function eventually(what, holds) {
  for (let i = 0; i < 3000; i++) {
    const result = await holds();
    if (result) return result;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  throw new Error(`not within a minute: ${what}`);
}

/** A `fetch` for an SDK that passes answers on, piece by piece, and writes each that came to its end to the file $RECORD:
    there it is held against openai-python's types. */
export function recording() {
  const statuses = [];
  const recorded = async (input, init) => {
    const response = await fetch(input, init);
    const { status, headers } = response;
    statuses.push(status);
    const path = new URL(input instanceof Request ? input.url : input).pathname;
    const pieces = [];
    const keep = new TransformStream({
      transform(piece, onward) {
        pieces.push(piece);
        onward.enqueue(piece);
      },
      flush() {
        const answer = { path, status, type: headers.get('content-type'), body: Buffer.concat(pieces).toString() };
        appendFileSync(process.env.RECORD, JSON.stringify(answer) + '\n');
      },
    });
    return new Response(response.body.pipeThrough(keep), { status, headers });
  };
  return { fetch: recorded, statuses };
}

/** Runs tests by name; the process ends with 1 if one failed. */
export async function run(tests) {
  let failed = 0;
  for (const [name, test] of Object.entries(tests)) {
    const began = performance.now();
    let outcome = 'ok';
    try {
      await test();
    } catch (error) {
      console.error(error);
      outcome = 'FAILED';
      failed++;
    }
    console.log(`  ${name.padEnd(52)} ${outcome} (${((performance.now() - began) / 1000).toFixed(1)} s)`);
  }
  process.exit(failed ? 1 : 0);
}
