"""A server of our own for a test, and what the tests share: waiting, running."""

import os
import re
import subprocess
import sys
import tempfile
import time
import traceback

import httpx2

BINARY = os.path.abspath(os.environ.get("HASHWATT", "target/release/hashwatt"))
USER = {"role": "user", "content": "What is hashprice?"}
# As long an answer as the demo's context has room for: seconds, time enough to act in its midst.
LONG = {"model": "demo", "messages": [USER], "max_tokens": 3900, "extra_body": {"ignore_eos": True}}


class Unit:
    """A server on a free port, ready when the block begins and gone when it ends."""

    def __init__(self, *flags):
        self.flags = flags

    def __enter__(self):
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".log")
        command = [BINARY, "serve", "--port", "0", *self.flags]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT)
        try:
            self.root = eventually("the server listens", self._address)
            eventually("it is ready", lambda: self.get("/readyz").status_code == 200)
        except BaseException:
            self.__exit__()
            raise
        self.url = self.root + "/v1"
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.log.close()

    def _address(self):
        text = open(self.log.name).read()
        assert self.process.poll() is None, text
        found = re.search(r"^  listen   (https?://[^/]+)/v1", text, re.MULTILINE)
        return found and found[1]

    def get(self, path):
        return httpx2.get(self.root + path, timeout=30)

    def running(self):
        """Sequences the engines run or hold waiting."""
        lines = self.get("/metrics").text.splitlines()
        ours = [line for line in lines if re.match(r"hashwatt_requests_(running|waiting)\{", line)]
        assert len(ours) == 2, ours
        return sum(float(line.split()[-1]) for line in ours)


class raises:
    """The block must end with `kind`, whose attributes are these."""

    def __init__(self, kind, **attributes):
        self.kind, self.attributes = kind, attributes

    def __enter__(self):
        pass

    def __exit__(self, kind, error, _):
        assert error, f"no {self.kind.__name__}"
        if not isinstance(error, self.kind):
            return False
        found = {name: getattr(error, name) for name in self.attributes}
        assert found == self.attributes, (error, found)
        return True


def eventually(what, holds):
    """Waits for what must come; the time is only there so that a fault ends."""
    for _ in range(3000):
        if result := holds():
            return result
        time.sleep(0.02)
    raise AssertionError(f"not within a minute: {what}")


def run(module):
    """Runs a module's `test_*` functions in order; exits 1 if one failed."""
    failed = 0
    for name, test in [(n, f) for n, f in vars(module).items() if n.startswith("test_")]:
        began = time.monotonic()
        try:
            test()
            outcome = "ok"
        except Exception:
            traceback.print_exc()
            failed += 1
            outcome = "FAILED"
        print(f"  {name[5:].replace('_', ' '):<52} {outcome} ({time.monotonic() - began:.1f} s)", flush=True)
    if failed:
        sys.exit(f"{failed} failed")
