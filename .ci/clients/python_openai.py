"""openai for Python against the running server."""

import subprocess
import sys
import tempfile
import threading
from enum import Enum
from typing import Optional

import openai
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field

from strict import recorded
from unit import BINARY, LONG, USER, Unit, eventually, raises, run


class State(str, Enum):
    serving = "serving"
    parked = "parked"


class Reading(BaseModel):
    watts: int = Field(ge=0, le=9999)
    state: State
    note: Optional[str] = Field(max_length=20)


class Report(BaseModel):
    readings: list[Reading] = Field(min_length=1, max_length=2)


ASKED = dict(model="demo", messages=[USER], max_tokens=24, seed=1)
PARSED = ASKED | dict(max_tokens=400, response_format=Report)


def client(unit, **options):
    return OpenAI(**dict(base_url=unit.url, api_key="none", http_client=recorded()) | options)


def test_models():
    here = client(UNIT)
    assert [m.id for m in here.models.list()] == ["demo"]
    assert here.models.retrieve("demo").owned_by == "hashwatt"
    assert here._client.recorder.checked == 2


def test_whole_answers():
    here = client(UNIT)
    answer = here.chat.completions.create(**ASKED, n=2, logprobs=True, top_logprobs=2)
    assert len(answer.choices) == 2 and all(c.logprobs.content for c in answer.choices)
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 24
    assert answer._request_id
    text = here.completions.create(model="demo", prompt=["Hashprice is", [5, 6]], logprobs=1)
    assert len(text.choices) == 2 and text.usage.completion_tokens <= 32
    assert here._client.recorder.checked == 2


def test_streams_and_usage():
    here = client(UNIT)
    for options in (None, {"include_usage": True}):
        chunks = list(here.chat.completions.create(**ASKED, n=2, stream=True, stream_options=options))
        last = chunks.pop() if options else None
        assert all(c.usage is None for c in chunks)
        assert len({(c.id, c.created, c.model) for c in chunks}) == 1
        for index in range(2):
            mine = [c.choices[0] for c in chunks if c.choices[0].index == index]
            assert (mine[0].delta.role, mine[0].delta.content) == ("assistant", "")
            assert [c.finish_reason is None for c in mine] == [True] * (len(mine) - 1) + [False]
        if last:
            assert last.choices == [] and last.usage.completion_tokens > 24
    text = dict(model="demo", prompt="Hashprice is", seed=1, extra_body={"ignore_eos": True})
    pieces = list(here.completions.create(**text, stream=True, stream_options={"include_usage": True}))
    assert pieces[-1].usage.completion_tokens == 16
    whole = here.completions.create(**text)
    assert "".join(c.choices[0].text for c in pieces[:-1]) == whole.choices[0].text
    assert here._client.recorder.checked > 80


def test_parsed_structured_output():
    here = client(UNIT)
    for temperature in (0, 1.5):
        answer = here.chat.completions.parse(**PARSED, temperature=temperature)
        assert isinstance(answer.choices[0].message.parsed, Report), answer
    with here.chat.completions.stream(**PARSED) as stream:
        kinds = {event.type for event in stream}
        parsed = stream.get_final_completion().choices[0].message.parsed
    assert isinstance(parsed, Report) and {"chunk", "content.delta", "content.done"} <= kinds


def test_refusals_are_the_clients_errors():
    here = client(UNIT)
    with raises(openai.BadRequestError, param="temperature", code=None):
        here.chat.completions.create(**ASKED, temperature=3)
    with raises(openai.BadRequestError, param="response_format", code="invalid_json_schema"):
        schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}
        here.chat.completions.create(**ASKED, response_format=schema)
    with raises(openai.NotFoundError, param="model", code="model_not_found"):
        here.chat.completions.create(**ASKED | {"model": "other"})
    with raises(openai.BadRequestError, param="messages", code="context_length_exceeded"):
        here.chat.completions.create(**ASKED | {"max_tokens": 4096})
    assert here._client.recorder.statuses == [400, 400, 404, 400], "refusals are not asked again"


def test_keys():
    with Unit("--api-key", "a-key-of-the-house") as unit:
        with raises(openai.AuthenticationError, code="invalid_api_key"):
            client(unit).models.list()
        assert OpenAI(base_url=unit.url, api_key="a-key-of-the-house").chat.completions.create(**ASKED)


def test_a_full_queue_is_retried():
    with Unit("--max-num-seqs", "1", "--max-queue", "1") as unit:
        streams = [client(unit).chat.completions.create(**LONG, stream=True) for _ in range(2)]
        # Both are taken: one runs, one waits.
        eventually("the unit is full", lambda: unit.running() == 2)
        with raises(openai.InternalServerError, code="server_overloaded", status_code=503):
            client(unit, max_retries=0).chat.completions.create(**ASKED)
        patient = client(unit, max_retries=8)
        answers = []
        asking = threading.Thread(target=lambda: answers.append(patient.chat.completions.create(**ASKED)))
        asking.start()
        eventually("it was refused", lambda: 503 in patient._client.recorder.statuses)
        for stream in streams:
            stream.close()
        asking.join()
        assert answers[0].choices[0].message.content
        *refused, taken = patient._client.recorder.statuses
        assert set(refused) == {503} and taken == 200


def test_a_limit_of_a_key_is_retried():
    with tempfile.TemporaryDirectory() as state:
        made = [BINARY, "keys", "create", "one", "--concurrent", "1", "--state-dir", state, "--admin-listen", "none"]
        key = subprocess.run(made, check=True, capture_output=True, text=True).stdout.strip().splitlines()[-1]
        with Unit("--state-dir", state) as unit:
            with raises(openai.AuthenticationError, code="invalid_api_key", status_code=401):
                client(unit).chat.completions.create(**ASKED)
            stream = client(unit, api_key=key).chat.completions.create(**LONG, stream=True)
            with raises(openai.RateLimitError, code="rate_limit_exceeded", status_code=429):
                client(unit, api_key=key, max_retries=0).chat.completions.create(**ASKED)
            patient = client(unit, api_key=key, max_retries=8)
            answers = []
            asking = threading.Thread(target=lambda: answers.append(patient.chat.completions.create(**ASKED)))
            asking.start()
            eventually("it was refused", lambda: 429 in patient._client.recorder.statuses)
            stream.close()
            asking.join()
            assert answers[0].choices[0].message.content
            *refused, taken = patient._client.recorder.statuses
            assert set(refused) == {429} and taken == 200


def test_an_error_in_the_midst_of_a_stream():
    with Unit("--drain-timeout", "100ms") as unit:
        here = client(unit)
        stream = here.chat.completions.create(**LONG, stream=True)
        with raises(openai.APIError, code="draining"):
            for i, _ in enumerate(stream):
                if i == 3:
                    unit.process.terminate()
        assert unit.process.wait() == 0


def test_leaving_frees_the_sequence():
    here = client(UNIT)
    stream = here.chat.completions.create(**LONG, n=4, stream=True)
    next(stream)
    assert UNIT.running() == 4
    stream.close()
    eventually("the stream's sequences are gone", lambda: UNIT.running() == 0)
    with raises(openai.APITimeoutError):
        client(UNIT, max_retries=0, timeout=0.4).chat.completions.create(**LONG, n=4)
    eventually("the sequences of the answer nobody waits for are gone", lambda: UNIT.running() == 0)


def test_the_asynchronous_client():
    import asyncio

    async def ask():
        async with AsyncOpenAI(base_url=UNIT.url, api_key="none") as here:
            answers = await asyncio.gather(*(here.chat.completions.create(**ASKED) for _ in range(16)))
            assert len({a.choices[0].message.content for a in answers}) == 1, "one seed, one text"
            stream = await here.chat.completions.create(**LONG, stream=True)
            async for _ in stream:
                break
            await stream.close()

    asyncio.run(ask())
    eventually("the sequence is gone", lambda: UNIT.running() == 0)


if __name__ == "__main__":
    with Unit() as UNIT:
        run(sys.modules[__name__])
