"""Tools, by openai for Python and langchain-openai: calls, streamed calls, and their results sent back."""

import json
import sys
from typing import Literal

import openai
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import OpenAI
from pydantic import BaseModel

from strict import recorded
from unit import USER, Unit, raises, run


class SetLimit(BaseModel):
    """Limits the unit's power."""

    watts: Literal[100, 200, 300]
    board: Literal["left", "right"]


def function(name):
    schema = SetLimit.model_json_schema() | {"additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": "x", "parameters": schema}}


TOOLS = [function("set_limit"), function("ask_limit")]
ASKED = dict(model="demo", messages=[USER], tools=TOOLS, max_tokens=400, seed=1)
NAMED = {"type": "function", "function": {"name": "ask_limit"}}


def client():
    return OpenAI(base_url=UNIT.url, api_key="none", http_client=recorded())


def check(call, names):
    assert call.type == "function" and call.id.startswith("call_") and call.function.name in names, call
    SetLimit.model_validate_json(call.function.arguments, strict=True)


def test_required_and_named_calls():
    here = client()
    for choice, names in (("required", {"set_limit", "ask_limit"}), (NAMED, {"ask_limit"})):
        for temperature in (0, 1.5):
            answer = here.chat.completions.create(**ASKED, tool_choice=choice, temperature=temperature)
            message = answer.choices[0].message
            assert message.tool_calls and not message.content, message
            for call in message.tool_calls:
                check(call, names)
            # OpenAI says `stop` after a named call; both words are in use.
            assert answer.choices[0].finish_reason in ("tool_calls", "stop" if choice is NAMED else "tool_calls")
    one = here.chat.completions.create(**ASKED, tool_choice="required", parallel_tool_calls=False)
    assert len(one.choices[0].message.tool_calls) == 1
    none = here.chat.completions.create(**ASKED | {"max_tokens": 8}, tool_choice="none")
    assert not none.choices[0].message.tool_calls and none.choices[0].message.content


def test_streamed_calls_add_up():
    here = client()
    whole = here.chat.completions.create(**ASKED, tool_choice=NAMED).choices[0].message.tool_calls
    chunks = list(here.chat.completions.create(**ASKED, tool_choice=NAMED, stream=True))
    deltas = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or ()]
    for index, call in enumerate(whole):
        first, *rest = [d for d in deltas if d.index == index]
        assert first.id.startswith("call_") and first.type == "function" and first.function.name == "ask_limit"
        assert all(d.id is None and d.type is None and d.function.name is None for d in rest)
        arguments = "".join(d.function.arguments for d in [first, *rest])
        assert arguments == call.function.arguments
    with here.chat.completions.stream(**ASKED, tool_choice="required") as stream:
        for _ in stream:
            pass
        for call in stream.get_final_completion().choices[0].message.tool_calls:
            SetLimit.model_validate_json(call.function.arguments)


def test_a_round_trip():
    here = client()
    message = here.chat.completions.create(**ASKED, tool_choice="required").choices[0].message
    results = [{"role": "tool", "tool_call_id": c.id, "content": json.dumps({"done": True})}
               for c in message.tool_calls]
    again = ASKED | {"messages": [USER, message, *results], "max_tokens": 16}
    answer = here.chat.completions.create(**again, tool_choice="none")
    assert answer.choices[0].message.content and answer.choices[0].finish_reason in ("stop", "length")


def test_parsed_tools():
    parsed = client().chat.completions.parse(
        **ASKED | {"tools": [openai.pydantic_function_tool(SetLimit)]}, tool_choice="required")
    for call in parsed.choices[0].message.tool_calls:
        assert isinstance(call.function.parsed_arguments, SetLimit)


def test_what_is_wrong_is_refused():
    with raises(openai.BadRequestError):
        client().chat.completions.create(
            **ASKED, tool_choice={"type": "function", "function": {"name": "no_such"}})
    with raises(openai.BadRequestError, param="tool_choice"):
        client().chat.completions.create(**ASKED | {"tools": openai.omit}, tool_choice="required")


def test_langchain():

    @tool
    def set_limit(watts: Literal[100, 200, 300]) -> str:
        """Limits the unit's power."""
        return f"limited to {watts} W"

    chat = ChatOpenAI(model="demo", base_url=UNIT.url, api_key="none", max_tokens=400, seed=1,
                      http_client=recorded())
    for choice in ("any", "set_limit"):
        answer = chat.bind_tools([set_limit], tool_choice=choice).invoke([HumanMessage("Limit it.")])
        assert answer.tool_calls and not answer.invalid_tool_calls, answer
        results = [set_limit.invoke(call) for call in answer.tool_calls]
        assert all(isinstance(result, ToolMessage) for result in results)
        final = chat.bind_tools([set_limit], tool_choice="none").invoke(
            [HumanMessage("Limit it."), answer, *results], max_tokens=16)
        assert final.content
    total = None
    for chunk in chat.bind_tools([set_limit], tool_choice="any").stream("Limit it."):
        total = chunk if total is None else total + chunk
    assert total.tool_calls and not total.invalid_tool_calls
    found = chat.with_structured_output(SetLimit, method="function_calling").invoke("Limit it.")
    assert isinstance(found, SetLimit)


if __name__ == "__main__":
    with Unit() as UNIT:
        run(sys.modules[__name__])
