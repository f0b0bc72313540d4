"""The served description, narrowed by what this unit says of itself: narrow.py URL FILE.

A description is of every unit, a unit's limits are its own: which models there are, how long a prompt may be, which
token ids exist, whether the model thinks. Narrowed by them data that fits is nearly always answered, and data that
does not fit must still be refused.
"""

import json
import sys
import urllib.request

url, file = sys.argv[1:]


def ask(path, body=None):
    data = body and json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url + path, data)) as answer:
        return json.load(answer)


def vocabulary():
    """The number of token ids; one that does not exist is refused with it."""
    try:
        ask("/detokenize", {"tokens": [2**32 - 1]})
    except urllib.error.HTTPError as refused:
        return int(json.load(refused)["error"]["message"].split(" of ")[-1])


def walk(value, change):
    change(value)
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        walk(inner, change)


def narrowed(document, models, ids):
    context = min(model["max_model_len"] for model in models)
    counts = ("max_tokens", "max_completion_tokens", "min_tokens")

    def change(value):
        if not isinstance(value, dict):
            return
        if value.get("maximum") == 2**32 - 1:
            value["maximum"] = ids - 1
        for name, schema in value.items():
            if name in counts and "maximum" in schema:
                schema["maximum"] = context - 1

    schemas = document["components"]["schemas"]
    walk(schemas, change)
    for name, schema in schemas.items():
        if name.endswith("Request"):
            fields = schema["properties"]
            kind = {"EmbeddingRequest": "minilm", "RerankRequest": "reranker", "ScoreRequest": "reranker"}.get(name, "demo")
            fields["model"] = {"enum": [*(model["id"] for model in models if kind in model["id"]), None]}
            # The demo does not think, and says so.
            if "reasoning_effort" in fields:
                fields["reasoning_effort"] = {"enum": ["none", None]}
                fields["enable_thinking"] = {"enum": [False, None]}
                fields["chat_template_kwargs"]["properties"]["enable_thinking"] = {"enum": [False, None]}
    return document


with open(file, "w") as out:
    json.dump(narrowed(ask("/openapi.json"), ask("/v1/models")["data"], vocabulary()), out)
