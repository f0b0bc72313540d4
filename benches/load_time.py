#!/usr/bin/env python3
"""Seconds from start to ready: `python3 benches/load_time.py target/release/hashwatt MODEL [ROUNDS]`.

The first start, which fills the page cache, is not counted. Prints JSON: the seconds of each start and their median.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

PORT = 18455


def start(binary, model, state):
    """Seconds until `/readyz` says 200, of a server that is ended then."""
    environment = {**os.environ, "XDG_STATE_HOME": state, "XDG_RUNTIME_DIR": state}
    command = [binary, "serve", "--model", model, "--port", str(PORT)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    began = time.monotonic()
    server = subprocess.Popen(command, env=environment, **quiet)
    try:
        while server.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/readyz", timeout=1)
                return time.monotonic() - began
            except OSError:
                time.sleep(0.005)
        sys.exit(f"{' '.join(command)} ended with {server.returncode}")
    finally:
        server.terminate()
        server.wait()


def main():
    binary, model = sys.argv[1:3]
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 9
    with tempfile.TemporaryDirectory() as state:
        seconds = [round(start(binary, model, state), 3) for _ in range(rounds + 1)][1:]
    print(json.dumps({"model": os.path.basename(model), "seconds_to_ready": seconds, "median_s": statistics.median(seconds)}))


main()
