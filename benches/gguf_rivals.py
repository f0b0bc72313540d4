#!/usr/bin/env python3
"""llama.cpp and hashwatt on the same GGUF files and threads, one after the other in every round.

    python3 benches/gguf_rivals.py target/release/hashwatt MODEL.gguf… [--out FILE.json]

Wants `pip install llama-cpp-python` (built on this machine, with GGML_NATIVE=ON). llama.cpp runs in this process through its
C interface, hashwatt behind HTTP, which counts against it. Greedy, ids in and ids out: a point decodes so many tokens after a
prompt of 16, or reads a prompt of so many tokens and answers one. Prints of each point the median of both in tokens a second,
and the median of the rounds' ratios with the least and the most.
"""
import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request

try:
    import llama_cpp
    import numpy
except ImportError as missing:
    print(f"{missing}: pip install llama-cpp-python", file=sys.stderr)
    sys.exit(2)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", help="hashwatt")
    parser.add_argument("models", nargs="+", help="GGUF files")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prefill", type=int, default=512, help="tokens of a prompt; 0 leaves it out")
    parser.add_argument("--decode", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", help="file for the JSON")
    return parser.parse_args()


class LlamaCpp:
    def __init__(self, model, options):
        self.model = llama_cpp.Llama(
            model, n_ctx=1024, n_batch=512, n_threads=options.threads, n_threads_batch=options.threads, verbose=False
        )

    def complete(self, ids, answer):
        self.model.reset()
        self.model.eval(ids)
        for _ in range(answer - 1):
            logits = self.model._ctx.get_logits_ith(-1)
            token = int(numpy.ctypeslib.as_array(logits, shape=(self.model.n_vocab(),)).argmax())
            self.model.eval([token])


class Hashwatt:
    def __init__(self, model, options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        port = self.url.rsplit(":", 1)[1]
        self.process = subprocess.Popen(
            [options.binary, "serve", "--model", model, "--port", port, "--max-model-len", "1024"]
            + ["--threads", str(options.threads)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while True:
            try:
                urllib.request.urlopen(self.url + "/readyz")
                return
            except (urllib.error.URLError, ConnectionError):
                if self.process.poll() is not None:
                    sys.exit(f"hashwatt did not start on {model}")
                time.sleep(0.1)

    def complete(self, ids, answer):
        body = {"prompt": ids, "max_tokens": answer, "ignore_eos": True, "temperature": 0}
        request = urllib.request.Request(
            self.url + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        usage = json.load(urllib.request.urlopen(request))["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (len(ids), answer), usage

    def close(self):
        self.process.terminate()
        self.process.wait()


def measure(model, options):
    """Tokens a second by point and rival, round by round."""
    numbers = numpy.random.default_rng(1)
    ours, theirs = Hashwatt(model, options), LlamaCpp(model, options)
    points = {f"decode {options.decode}": (16, options.decode)}
    if options.prefill:
        points[f"prefill {options.prefill}"] = (options.prefill, 1)
    rates = {point: {"hashwatt": [], "llama.cpp": []} for point in points}
    try:
        for turn in range(options.rounds + 1):
            for point, (prompt, answer) in points.items():
                for name, rival in [("hashwatt", ours), ("llama.cpp", theirs)]:
                    # Ids that no round shares, so that no cache of prefixes helps.
                    ids = numbers.integers(300, 5000, prompt).tolist()
                    begun = time.perf_counter()
                    rival.complete(ids, answer)
                    rate = (answer if answer > 1 else prompt) / (time.perf_counter() - begun)
                    # The first round warms up.
                    if turn:
                        rates[point][name].append(rate)
    finally:
        ours.close()
    return rates


def main():
    options = arguments()
    results = {}
    for model in options.models:
        name = os.path.basename(model)
        results[name] = measure(model, options)
        for point, rates in results[name].items():
            ratios = [a / b for a, b in zip(rates["hashwatt"], rates["llama.cpp"])]
            medians = [statistics.median(rates[rival]) for rival in ("hashwatt", "llama.cpp")]
            print(
                f"{name:<28} {point:<12} hashwatt {medians[0]:8.1f}  llama.cpp {medians[1]:8.1f} tokens/s"
                f"  {statistics.median(ratios):5.2f} × ({min(ratios):.2f} to {max(ratios):.2f})",
                flush=True,
            )
    if options.out:
        with open(options.out, "w") as out:
            json.dump({"threads": options.threads, "llama_cpp_python": llama_cpp.__version__, "models": results}, out, indent=1)


if __name__ == "__main__":
    main()
