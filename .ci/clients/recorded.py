"""Holds what the SDKs for Node were answered against openai-python's types: `recorded.py FILE`."""

import json
import sys

from strict import check

answers = [json.loads(line) for line in open(sys.argv[1])]
checked = sum(check(a["path"], a["status"], a["type"], a["body"].encode()) for a in answers)
assert checked > 50, f"only {checked} objects were recorded"
print(f"  {len(answers)} answers to the SDKs for Node, {checked} objects: strictly openai-python's types")
