#!/usr/bin/env python3
"""llama-server and hashwatt under the same load, one after the other in every round.

    python3 benches/serving_rivals.py target/release/hashwatt LLAMA_SERVER MODEL.gguf… [--clients 8,32] [--out FILE.json]

Both serve the same GGUF file with the same threads; the load runs beside them on the same cores. A client sends prompts of 128
ids of its own one after the other to /v1/completions, streams, and wants 64 tokens of each, greedily. llama-server is given a slot
for every client. Prints the tokens a second of all clients together: the median of both, and the median of the rounds' ratios
with the least and the most.
"""
import argparse
import http.client
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", help="hashwatt")
    parser.add_argument("llama_server")
    parser.add_argument("models", nargs="+", help="GGUF files")
    parser.add_argument("--clients", default="8,32")
    parser.add_argument("--requests", type=int, default=2, help="of a client")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--answer", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", help="file for the JSON")
    return parser.parse_args()


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Server:
    def __init__(self, command, port, ready, state):
        self.port, environment = port, {**os.environ, "XDG_STATE_HOME": state, "XDG_RUNTIME_DIR": state}
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}{ready}")
                return
            except OSError:
                if self.process.poll() is not None:
                    sys.exit(f"{' '.join(command)} ended")
                time.sleep(0.1)

    def stop(self):
        self.process.terminate()
        self.process.wait()


def client(port, prompts, answer, totals):
    for ids in prompts:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        body = {"model": "default", "prompt": ids, "max_tokens": answer, "temperature": 0, "ignore_eos": True, "stream": True,
                "stream_options": {"include_usage": True}}
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response, usage = connection.getresponse(), None
        if response.status != 200:
            sys.exit(f"port {port}: {response.status} {response.read()[:300]}")
        for line in response:
            if line.startswith(b"data: {"):
                usage = json.loads(line[6:]).get("usage") or usage
        totals.append(usage["completion_tokens"])


def load(port, clients, options, seed):
    """Tokens a second of all clients together."""
    numbers, totals = random.Random(seed), []
    prompts = [[[numbers.randrange(1000, 30000) for _ in range(options.prompt)] for _ in range(options.requests)] for _ in range(clients)]
    threads = [threading.Thread(target=client, args=(port, own, options.answer, totals)) for own in prompts]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wanted = clients * options.requests * options.answer
    if sum(totals) != wanted:
        sys.exit(f"port {port}: {sum(totals)} tokens of {wanted}")
    return wanted / (time.monotonic() - began)


def main():
    options, points = arguments(), []
    for model in options.models:
        for clients in [int(n) for n in options.clients.split(",")]:
            with tempfile.TemporaryDirectory() as state:
                threads, length = str(options.threads), options.prompt + options.answer + 16
                ports = {"llama.cpp": free_port(), "hashwatt": free_port()}
                rival = [options.llama_server, "-m", model, "--port", str(ports["llama.cpp"]), "-t", threads, "-tb", threads,
                         "-np", str(clients), "-c", str(clients * length)]
                ours = [options.binary, "serve", "--model", model, "--port", str(ports["hashwatt"]), "--threads", threads, "--served-model-name", "default"]
                servers = [Server(rival, ports["llama.cpp"], "/health", state), Server(ours, ports["hashwatt"], "/readyz", state)]
                rounds = []
                for number in range(options.rounds):
                    order = list(ports) if number % 2 else list(ports)[::-1]
                    rounds.append({name: load(ports[name], clients, options, number) for name in order})
                for server in servers:
                    server.stop()
            ratios = sorted(r["hashwatt"] / r["llama.cpp"] for r in rounds)
            middle = {name: statistics.median(r[name] for r in rounds) for name in ports}
            points.append({"model": os.path.basename(model), "clients": clients, "rounds": rounds, "ratio": statistics.median(ratios)})
            print(f"{os.path.basename(model)}, {clients} clients: llama-server {middle['llama.cpp']:.1f} tokens/s, "
                  f"hashwatt {middle['hashwatt']:.1f}: {statistics.median(ratios):.2f} × ({ratios[0]:.2f} to {ratios[-1]:.2f})", flush=True)
    if options.out:
        with open(options.out, "w") as file:
            json.dump({"bench": "serving_rivals", "points": points}, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
