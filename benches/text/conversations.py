"""Conversations that the chat templates are asked to render."""

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a <city> & \"today's\" temperature, in °C",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Name of the city"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
                "days": {"type": "array", "items": {"type": "integer"}},
                "exact": {"type": ["boolean", "null"]},
            },
            "required": ["city"],
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {"name": "clock", "description": "The time", "parameters": {"type": "object", "properties": {}}},
}
TOOLS = [WEATHER, CLOCK]


def say(role, content, **more):
    return {"role": role, "content": content, **more}


def call(name, arguments, id="call00001"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


SMALL = [
    say("system", "Be brief."),
    say("user", " Hi <b>, wie geht's? \n"),
    say("assistant", "<think>\nhm\n</think>\n\nGut & du?", tool_calls=[call("clock", {"a": 1, "b": ["é", None, 1.5]})]),
    say("tool", "12:00", tool_call_id="call00001"),
    say("user", "数学?"),
]
Q1, A1, Q2 = say("user", "  What is 1+1?\n"), say("assistant", " 2 \n"), say("user", "And 2+2? 🙂")
SYSTEM = say("system", " You are <helpful> & terse.\n")
THOUGHT = say("assistant", "It is 2.", reasoning_content="1+1\n is 2")
INLINE = say("assistant", "<think>\n1+1\n</think>\n\nIt is 2.")
CALLS = say("assistant", "", tool_calls=[call("get_weather", {"city": "Zürich", "days": [1, 2], "exact": True})])
TWO = say("assistant", "Let me see.", tool_calls=[
    call("get_weather", {"city": "O'Hare \"x\" <y>"}), call("clock", {}, "call00002")])
RESULT = say("tool", '{"temperature": 21.5, "sky": "klar ☀"}', tool_call_id="call00001", name="get_weather")
RESULT_2 = say("tool", "14:05", tool_call_id="call00002", name="clock")
DONE = say("assistant", "21.5 °C.")

ALL = {
    "one": ([Q1], {}),
    "system": ([SYSTEM, Q1], {}),
    "turns": ([SYSTEM, Q1, A1, Q2], {}),
    "thought": ([Q1, THOUGHT, Q2], {}),
    "inline": ([Q1, INLINE, Q2], {}),
    "thinks": ([Q1], {"enable_thinking": True}),
    "no thinking": ([SYSTEM, Q1], {"enable_thinking": False}),
    "effort": ([Q1], {"reasoning_effort": "high"}),
    "tools": ([Q1], {"tools": TOOLS}),
    "tools, system": ([SYSTEM, Q1, A1, Q2], {"tools": TOOLS}),
    "called": ([Q1, CALLS], {"tools": TOOLS}),
    "answered": ([Q1, CALLS, RESULT], {"tools": TOOLS}),
    "two": ([SYSTEM, Q1, TWO, RESULT, RESULT_2, DONE, Q2], {"tools": TOOLS}),
    "thoughtful call": ([Q1, {**CALLS, "reasoning_content": "I must look."}, RESULT], {"tools": TOOLS}),
    "call without tools": ([Q1, CALLS, RESULT, DONE], {}),
    "documents": ([Q1], {"documents": [{"doc_id": 1, "title": "A", "text": "One\nis é."}, {"text": "two"}]}),
    "users": ([Q1, Q2], {}),
    "assistant first": ([A1, Q1], {}),
    "late system": ([Q1, A1, SYSTEM, Q2], {}),
    "odd role": ([Q1, say("critic", "no")], {}),
    "developer": ([say("developer", "Be kind."), Q1], {}),
    "empty": ([say("system", ""), say("user", "")], {}),
    "nobody": ([], {}),
    "identity": ([Q1], {"model_identity": "You are a test.", "builtin_tools": ["python"]}),
}

TOKENS = {
    "llama2": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "llama3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "mistral": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "mixtral": {"bos_token": "<s>", "eos_token": "</s>"},
    "ministral": {"bos_token": "<s>", "eos_token": "</s>"},
    "qwen2": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "qwen3": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "gemma2": {"bos_token": "<bos>", "eos_token": "<eos>"},
    "gemma3": {"bos_token": "<bos>", "eos_token": "<eos>"},
    "phi3": {"bos_token": "<s>", "eos_token": "<|endoftext|>"},
    "phi4": {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"},
    "smollm2": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
    "smollm3": {"eos_token": "<|im_end|>"},
    "granite3": {"bos_token": "<|end_of_text|>", "eos_token": "<|end_of_text|>"},
    "olmo2": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    "glm4": {"eos_token": "<|endoftext|>"},
    "gptoss": {"bos_token": "<|startoftext|>", "eos_token": "<|return|>"},
}
