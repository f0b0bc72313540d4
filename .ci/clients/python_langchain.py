"""langchain-openai against the running server."""

import asyncio
import sys
import threading

import openai
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, Field

from strict import recorded
from unit import Unit, eventually, raises, run


class Verdict(BaseModel):
    """Whether to serve."""

    serve: bool
    watts: int = Field(ge=0, le=999)


def model(unit, **options):
    options = dict(max_tokens=24, seed=1, timeout=60) | options
    http = recorded()
    made = ChatOpenAI(model="demo", base_url=unit.url, api_key="none", http_client=http, **options)
    return made, http.recorder


def endless(unit, **options):
    return model(unit, max_tokens=3900, extra_body={"ignore_eos": True}, **options)[0]


def test_invoke_and_batch():
    chat, recorder = model(UNIT)
    answer = chat.invoke([SystemMessage("Be brief."), HumanMessage("What is hashprice?")])
    usage = answer.usage_metadata
    assert answer.content and usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert answer.response_metadata["finish_reason"] in ("stop", "length")
    assert len(chat.batch(["What is PUE?"] * 8)) == 8
    assert recorder.checked == 9


def test_a_chain_streams_with_usage():
    chat, recorder = model(UNIT, stream_usage=True)
    chunks = list(chat.stream("What is hashprice?"))
    assert len(chunks) > 8
    usages = [c.usage_metadata for c in chunks if c.usage_metadata]
    assert len(usages) == 1 and usages[0]["output_tokens"] > 8
    chain = ChatPromptTemplate.from_template("What is {word}?") | chat | StrOutputParser()
    assert "".join(chain.stream({"word": "hashprice"})) == "".join(c.content for c in chunks)
    assert recorder.checked > 40


def test_an_asynchronous_stream():
    async def ask():
        return [c async for c in model(UNIT)[0].astream("What is hashprice?")]

    assert len(asyncio.run(ask())) > 8


def test_parsed_structured_output():
    chat, recorder = model(UNIT, max_tokens=300, temperature=1.0)
    for method in ("json_schema", "json_mode"):
        parser = chat.with_structured_output(Verdict, method=method, include_raw=True)
        found = parser.invoke("Serve or mine?")
        assert found["raw"].content.startswith("{")
        if method == "json_schema":
            assert isinstance(found["parsed"], Verdict), found
    assert recorder.checked == 2


def test_text_completions():
    text = OpenAI(model="demo", base_url=UNIT.url, api_key="none", max_tokens=8)
    assert text.invoke("Hashprice is")


def test_a_full_queue_is_retried():
    with Unit("--max-num-seqs", "1", "--max-queue", "1") as unit:
        stream = endless(unit).stream("What is hashprice?")
        next(stream)
        waiting = threading.Thread(target=model(unit)[0].invoke, args=["What is PUE?"], daemon=True)
        waiting.start()
        eventually("the unit is full", lambda: unit.running() == 2)
        with raises(openai.InternalServerError, code="server_overloaded"):
            model(unit, max_retries=0)[0].invoke("What is PUE?")
        chat, recorder = model(unit, max_retries=9)
        answers = []
        asking = threading.Thread(target=lambda: answers.append(chat.invoke("What is PUE?")))
        asking.start()
        eventually("it was refused", lambda: 503 in recorder.statuses)
        stream.close()
        asking.join()
        assert answers[0].content and recorder.statuses[-1] == 200


def test_an_error_in_the_midst_of_a_stream():
    with Unit("--drain-timeout", "100ms") as unit:
        with raises(openai.APIError, code="draining"):
            for i, _ in enumerate(endless(unit).stream("What is hashprice?")):
                if i == 3:
                    unit.process.terminate()


def test_leaving_frees_the_sequence():
    stream = endless(UNIT).stream("What is hashprice?")
    next(stream)
    assert UNIT.running() == 1
    stream.close()
    eventually("the sequence is gone", lambda: UNIT.running() == 0)


if __name__ == "__main__":
    with Unit() as UNIT:
        run(sys.modules[__name__])
