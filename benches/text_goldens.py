#!/usr/bin/env python3
"""Prompts and token ids by HuggingFace's `transformers` and `tokenizers`: the files `text_*.json` of `tests/it/cases`.

    python3 benches/text_goldens.py

Chat templates (`tests/it/cases/chat_templates/*.jinja`, written for this project in each family's constructs and format)
and the small ones of `text/jinja_cases.py` are rendered by HuggingFace's own renderer on a frozen day; where it raises,
the case must be refused. Tokenizers are built here, too: `text/tokenizer_cases.py`.
"""
import datetime
import json
import os
import sys

try:
    import tokenizers
    import transformers
    from transformers.utils import chat_template_utils
except ImportError as missing:
    print(f"{missing}: pip install transformers tokenizers jinja2", file=sys.stderr)
    sys.exit(2)

HERE = os.path.dirname(os.path.abspath(__file__))
CASES = os.path.join(HERE, "..", "tests", "it", "cases")
sys.path.insert(0, os.path.join(HERE, "text"))
import conversations  # noqa: E402
import jinja_cases  # noqa: E402
import jinja_filters  # noqa: E402
import tokenizer_cases  # noqa: E402

# A day of one digit, in the afternoon: 2026-03-07 14:05:09, without a time zone as HuggingFace takes it.
NOW = datetime.datetime(2026, 3, 7, 14, 5, 9)


class Frozen(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


def render(template, messages, **kwargs):
    """What HuggingFace's renderer makes of it; None where it refuses."""
    try:
        return chat_template_utils.render_jinja_template([messages], chat_template=template, **kwargs)[0][0]
    except Exception:  # Whatever it is: the case is one to be refused.
        return None


def jinja():
    context = jinja_cases.CONTEXT
    cases = []
    for subject, text in [*jinja_cases.CASES.items(), *jinja_filters.CASES.items()]:
        cases += [(subject, line) for line in text.strip("\n").split("\n")]
    cases += [("lines", source) for source in jinja_filters.LINES.strip("\n").split("\n---\n")]
    results = []
    for subject, source in cases:
        text = render(source, conversations.SMALL, tools=conversations.TOOLS, **context)
        results.append({"subject": subject, "source": source, "text": text})
    return {"context": context, "messages": conversations.SMALL, "tools": conversations.TOOLS, "cases": results}


def families():
    folder = os.path.join(CASES, "chat_templates")
    results = []
    for file in sorted(os.listdir(folder)):
        family = file.removesuffix(".jinja")
        with open(os.path.join(folder, file), encoding="utf-8") as opened:
            source = opened.read()
        tokens = conversations.TOKENS.get(family, {})
        for name, (messages, more) in conversations.ALL.items():
            for prompt in (True, False) if name in ("turns", "called", "thought") else (True,):
                text = render(source, messages, add_generation_prompt=prompt, **tokens, **more)
                results.append({"template": family, "conversation": name, "prompt": prompt, "text": text})
    talks = {name: {"messages": m, "more": more} for name, (m, more) in conversations.ALL.items()}
    return {"tokens": conversations.TOKENS, "conversations": talks, "cases": results}


def dump(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def write(name, content):
    made = {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__, "now": int(
        NOW.replace(tzinfo=datetime.timezone.utc).timestamp())}
    path = os.path.join(CASES, name)
    with open(path, "w", encoding="utf-8") as file:
        # A line for each member, and for each case.
        file.write("{\n")
        for i, (key, value) in enumerate({"made_by": made, **content}.items()):
            file.write(("" if i == 0 else ",\n") + json.dumps(key) + ": ")
            one = [dump(item) for item in value] if isinstance(value, list) else None
            file.write("[\n" + ",\n".join(one) + "\n]" if one is not None else dump(value))
        file.write("\n}\n")
    print(f"{path}: {os.path.getsize(path)} bytes")


def main():
    chat_template_utils.datetime = Frozen
    write("text_jinja.json", jinja())
    write("text_chats.json", families())
    write("text_byte_level.json", tokenizer_cases.goldens(tokenizer_cases.BYTE_LEVEL))
    write("text_pieces.json", tokenizer_cases.goldens(tokenizer_cases.PIECES))


main()
