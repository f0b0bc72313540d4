"""Embeddings by openai for Python and langchain-openai."""

import base64
import struct
import sys

import openai
from langchain_openai import OpenAIEmbeddings
from openai import OpenAI

from strict import recorded
from unit import USER, Unit, raises, run

MODEL = "synthetic:minilm-tiny"
TEXTS = ["hashprice", "What is PUE?", "power usage effectiveness, the ratio of all energy to the computers'"]


def test_openai_and_langchain():
    # A chat model and an encoder together, chosen by name.
    with Unit("--model", "demo", "--model", MODEL) as unit:
        assert [model["id"] for model in unit.get("/v1/models").json()["data"]] == ["demo", MODEL]
        openai_python(unit, MODEL)
        langchain(unit, MODEL)
        chat = OpenAI(base_url=unit.url, api_key="none").chat.completions
        assert chat.create(model="demo", messages=[USER], max_tokens=8).choices[0].message.content


def openai_python(unit, name):
    here = OpenAI(base_url=unit.url, api_key="none", http_client=recorded())
    # The SDK asks for base64 by itself and decodes it; asked for floats it passes them on.
    packed = here.embeddings.create(model=name, input=TEXTS)
    floats = here.embeddings.create(model=name, input=TEXTS, encoding_format="float")
    assert [e.index for e in packed.data] == [0, 1, 2] and packed.usage.prompt_tokens > 3
    for a, b in zip(packed.data, floats.data):
        assert len(a.embedding) == len(b.embedding) > 8
        assert max(abs(x - y) for x, y in zip(a.embedding, b.embedding)) < 1e-6
        assert abs(sum(x * x for x in b.embedding) - 1) < 1e-3
    raw = here.embeddings.with_raw_response.create(model=name, input="x", encoding_format="base64")
    text = raw.http_response.json()["data"][0]["embedding"]
    assert len(struct.unpack(f"<{len(floats.data[0].embedding)}f", base64.b64decode(text)))
    alone = here.embeddings.create(model=name, input=TEXTS[0], encoding_format="float").data[0].embedding
    assert max(abs(x - y) for x, y in zip(alone, floats.data[0].embedding)) < 1e-4
    with raises(openai.BadRequestError, param="input"):
        here.embeddings.create(model=name, input=[])


def langchain(unit, name):
    # Without a known tokenizer texts go as texts.
    made = OpenAIEmbeddings(model=name, base_url=unit.url, api_key="none", check_embedding_ctx_length=False)
    assert len(made.embed_documents(TEXTS)) == 3 and len(made.embed_query("x")) > 8


if __name__ == "__main__":
    run(sys.modules[__name__])
