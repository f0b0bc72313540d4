#!/usr/bin/env python3
"""What prompt lookup is worth where an answer quotes: tokens a second with it ÷ without.

    python3 benches/prompt_lookup.py target/release/hashwatt [--rounds 9] [--out FILE.json]

Wants `pip install numpy safetensors ml_dtypes`. No trained weights are at hand, so the model is made: the shape of Qwen3-0.6B
in bf16, every product of it computed, whose first four layers are an induction head (arXiv 2209.11895) and whose others add
nothing. It goes on with what followed the last three tokens earlier in the prompt, so an answer quotes, and goes elsewhere in
the document where three words stand twice. Answers that quote nothing are drawn at a high temperature. The document is a text of this
repository, a token a word; the prompt is the document, a request, and the beginning of a passage. Two servers, taken in turns;
their answers must be the same.
"""
import argparse
import json
import os
import pathlib
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

try:
    import ml_dtypes
    import numpy
    from safetensors.numpy import save_file
except ImportError as missing:
    print(f"{missing}: pip install numpy safetensors ml_dtypes", file=sys.stderr)
    sys.exit(2)

HIDDEN, HEADS, KV_HEADS, WIDTH, INNER, LAYERS, VOCAB = 1024, 16, 8, 128, 3072, 28, 151936
CODE = 252  # numbers that say which token; as many for each of the three before it
CONSTANT = HIDDEN - 1
FIRST_WORD = 1000
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": WIDTH, "intermediate_size": INNER,
    "vocab_size": VOCAB, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
    "tie_word_embeddings": True, "hidden_act": "silu", "torch_dtype": "bfloat16",
}


def zeros(*shape):
    return numpy.zeros(shape, dtype=numpy.float32)


def empty_attention():
    return (zeros(HEADS * WIDTH, HIDDEN), zeros(KV_HEADS * WIDTH, HIDDEN), zeros(KV_HEADS * WIDTH, HIDDEN),
            zeros(HIDDEN, HEADS * WIDTH))


def carried(v, o, source, target, times):
    """Four heads of two carry a code from one place of a row to another."""
    quarter = CODE // 4
    for part in range(4):
        for i in range(quarter):
            v[part * WIDTH + i, source + part * quarter + i] = 1.0
            o[target + part * quarter + i, 2 * part * WIDTH + i] = times


def from_the_row_before(source, target):
    """Every row takes a code of the row before it."""
    q, k, v, o = empty_attention()
    for part in range(4):
        # Scores of a constant with a constant that is turned by one position: highest one position back.
        for pair, frequency in enumerate(1e6 ** (-numpy.arange(12) / (WIDTH // 2))):
            k[part * WIDTH + pair, CONSTANT] = 1.0
            q[2 * part * WIDTH + pair, CONSTANT] = numpy.cos(frequency)
            q[2 * part * WIDTH + WIDTH // 2 + pair, CONSTANT] = -numpy.sin(frequency)
    carried(v, o, source, target, 1.0)
    return q, k, v, o


def induction():
    """A row attends to rows whose three previous tokens are its own and the two before it, and takes their code."""
    q, k, v, o = empty_attention()
    # Pairs that hardly turn over a few thousand positions.
    slow = [i for pair in range(40, WIDTH // 2) for i in (pair, pair + WIDTH // 2)]
    third = len(slow) // 3
    for part in range(4):
        for i, at in enumerate(slow):
            code, place = part * third + i % third, CODE * (i // third)
            q[2 * part * WIDTH + at, place + code] = 1.0
            k[part * WIDTH + at, place + CODE + code] = 1.0
    carried(v, o, 0, 0, 8.0)
    return q, k, v, o


def make(folder):
    numbers = numpy.random.default_rng(7)
    embedding = zeros(VOCAB, HIDDEN)
    embedding[:, :CODE] = numbers.choice([-1.0, 1.0], (VOCAB, CODE))
    embedding[:, CONSTANT] = 1.0
    tensors = {"model.embed_tokens.weight": embedding, "model.norm.weight": numpy.full(HIDDEN, 0.02, numpy.float32)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        special = {3: induction, **{i: lambda i=i: from_the_row_before(i * CODE, (i + 1) * CODE) for i in range(3)}}.get(layer)
        random = lambda *shape: numbers.standard_normal(shape, dtype=numpy.float32) / numpy.sqrt(shape[1])
        q, k, v, o = special() if special else (
            random(HEADS * WIDTH, HIDDEN), random(KV_HEADS * WIDTH, HIDDEN), random(KV_HEADS * WIDTH, HIDDEN), zeros(HIDDEN, HEADS * WIDTH))
        for name, tensor in (("q", q), ("k", k), ("v", v), ("o", o)):
            tensors[f"{at}self_attn.{name}_proj.weight"] = tensor
        sharp = 6.0 if special else 1.0
        for name in ("q", "k"):
            tensors[f"{at}self_attn.{name}_norm.weight"] = numpy.full(WIDTH, sharp, numpy.float32)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}{name}.weight"] = numpy.ones(HIDDEN, numpy.float32)
        tensors[f"{at}mlp.gate_proj.weight"], tensors[f"{at}mlp.up_proj.weight"] = random(INNER, HIDDEN), random(INNER, HIDDEN)
        tensors[f"{at}mlp.down_proj.weight"] = zeros(HIDDEN, INNER)
    save_file({name: t.astype(ml_dtypes.bfloat16) for name, t in tensors.items()}, str(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    # Prompts are ids; answers are told apart by their words.
    words = {"type": "WordLevel", "vocab": {f"w{i}": i for i in range(VOCAB)}, "unk_token": "w0"}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": words}))


def prompts(count):
    """The document's words as ids, a request of words that are not in it, and the first words of a passage."""
    text = (pathlib.Path(__file__).parent.parent / "docs" / "economics.md").read_text()
    words = re.findall(r"[A-Za-z]+", text)[:900]
    known = {}
    ids = [known.setdefault(word, FIRST_WORD + len(known)) for word in words]
    request = list(range(FIRST_WORD + 5000, FIRST_WORD + 5012))
    return [ids + request + ids[at : at + 3] for at in range(40, 40 + 90 * count, 90)]


class Server:
    def __init__(self, binary, folder, *flags):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [binary, "serve", "--model", str(folder), "--port", str(self.port), "--enable-prefix-caching=false", "--max-num-seqs", "4", *flags]
        environment = {**os.environ, "XDG_STATE_HOME": str(folder), "XDG_RUNTIME_DIR": str(folder)}
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz")
                return
            except OSError:
                if self.process.poll() is not None:
                    sys.exit(f"{self.process.args} ended")
                time.sleep(0.05)

    def complete(self, ids, count, temperature=0):
        """The answer, the seconds from its first piece to its last, and the usage."""
        body = {"prompt": ids, "max_tokens": count, "temperature": temperature, "seed": 1, "ignore_eos": True, "stream": True,
                "stream_options": {"include_usage": True}}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/v1/completions", json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        first = last = usage = None
        text = ""
        with urllib.request.urlopen(request) as answer:
            for line in answer:
                if not line.startswith(b"data: {"):
                    continue
                chunk = json.loads(line[6:])
                usage = chunk.get("usage") or usage
                if chunk["choices"]:
                    last = time.monotonic()
                    first = first or last
                    text += chunk["choices"][0]["text"]
        return text, last - first, usage


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", help="hashwatt")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=128, help="of an answer")
    parser.add_argument("--out", help="file for the JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        make(folder)
        plain, guessing = Server(options.binary, folder), Server(options.binary, folder, "--speculative", "prompt-lookup")
        rounds = []
        for number, ids in enumerate(prompts(options.rounds)):
            order = [plain, guessing] if number % 2 else [guessing, plain]
            found = {}
            # Quoting, and saying what stands nowhere: drawn evenly from the whole vocabulary.
            for kind, temperature in (("quoting", 0), ("other", 2)):
                answers = {server: server.complete(ids, options.tokens, temperature) for server in order}
                (text, slow, _), (same, fast, usage) = answers[plain], answers[guessing]
                assert text == same, f"round {number}: {text!r} is not {same!r}"
                details = usage["completion_tokens_details"]
                found[kind] = {
                    "plain_s": slow, "lookup_s": fast, "ratio": slow / fast,
                    "right_guesses": details["accepted_prediction_tokens"], "wrong_guesses": details["rejected_prediction_tokens"],
                }
            both = [sum(found[kind][of] for kind in ("quoting", "other")) for of in ("plain_s", "lookup_s")]
            rounds.append({**found, "half quoting": {"plain_s": both[0], "lookup_s": both[1], "ratio": both[0] / both[1]}})
        for server in (plain, guessing):
            server.process.terminate()
            server.process.wait()
    for kind in ("quoting", "half quoting", "other"):
        ratios = sorted(r[kind]["ratio"] for r in rounds)
        print(f"{kind}: {statistics.median(ratios):.2f} × ({ratios[0]:.2f} to {ratios[-1]:.2f})", end="")
        if kind in ("quoting", "other"):
            rates = [(options.tokens - 1) / statistics.median(r[kind][of] for r in rounds) for of in ("plain_s", "lookup_s")]
            guesses = [statistics.median(r[kind][f"{of}_guesses"] for r in rounds) for of in ("right", "wrong")]
            print(f"; {rates[0]:.1f} tokens/s, with prompt lookup {rates[1]:.1f}; of {options.tokens} tokens {guesses[0]:.0f} "
                  f"guessed, {guesses[1]:.0f} guesses wrong", end="")
        print()
    if options.out:
        pathlib.Path(options.out).write_text(json.dumps({"bench": "prompt_lookup", "rounds": rounds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
