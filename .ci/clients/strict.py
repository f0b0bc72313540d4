"""Every answer, held against openai-python's own types: strict, nothing missing, nothing unknown.

`Recorder` is a transport for the SDKs that passes each answer on and keeps it; `check` validates one.
"""

import base64
import json
import re
import struct

import httpx2
import pydantic
from openai.types import Completion, CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.shared import ErrorObject

# What we say beyond OpenAI's types, by where. Anything else is a mistake.
EXTENSIONS = {
    "usage.energy", "choices.message.reasoning", "choices.message.reasoning_content",
    "choices.delta.reasoning", "choices.delta.reasoning_content",
    "root", "parent", "max_model_len", "service_tier",
}
TYPES = {
    ("/v1/chat/completions", False): ChatCompletion,
    ("/v1/chat/completions", True): ChatCompletionChunk,
    ("/v1/completions", False): Completion,
    ("/v1/completions", True): Completion,
    ("/v1/embeddings", False): CreateEmbeddingResponse,
}


def validate(kind, value):
    """One object, strictly as `kind`: no coercion, no member missing."""
    model = kind.model_validate_json(json.dumps(value), strict=True)
    unknown = set(extras(model)) - EXTENSIONS
    assert not unknown, f"{kind.__name__} has {unknown}"
    return model


def extras(model, path=""):
    """Paths of what pydantic took although no type names it."""
    if isinstance(model, list):
        for item in model:
            yield from extras(item, path)
    elif isinstance(model, pydantic.BaseModel):
        yield from (path + name for name in model.model_extra or ())
        for name in type(model).model_fields:
            yield from extras(getattr(model, name), f"{path}{name}.")


def check(path, status, content_type, body):
    """The body of an answer of `path`; returns how many objects were held against a type."""
    if status >= 400:
        (name, error), = json.loads(body).items()
        assert name == "error" and set(error) == {"message", "type", "param", "code"}, error
        validate(ErrorObject, error)
        return 1
    if path.startswith("/v1/models"):
        answer = json.loads(body)
        models = answer["data"] if path == "/v1/models" else [answer]
        return len([validate(Model, model) for model in models])
    if not content_type.startswith("text/event-stream"):
        answer = json.loads(body)
        if path == "/v1/embeddings":
            # The type is of what the SDK makes of base64: its numbers.
            for entry in answer["data"]:
                if isinstance(entry["embedding"], str):
                    packed = base64.b64decode(entry["embedding"])
                    entry["embedding"] = list(struct.unpack(f"<{len(packed) // 4}f", packed))
        validate(TYPES[path, False], answer)
        return 1
    events = [e for e in body.decode().split("\n\n") if e and not e.startswith(":")]
    checked = 0
    for event in events:
        data = event.removeprefix("data: ")
        if data == "[DONE]" or event == events[-1] and not body.endswith(b"\n\n"):
            continue  # The end; or a client that left, in the midst of an event.
        chunk = json.loads(data)
        if "error" in chunk:
            validate(ErrorObject, chunk["error"])
        else:
            if path == "/v1/completions":
                # OpenAI streams null here before the end, as we do; its type only knows whole answers.
                for choice in chunk["choices"]:
                    choice["finish_reason"] = choice["finish_reason"] or "stop"
            validate(TYPES[path, True], chunk)
        checked += 1
    return checked


class Recorder(httpx2.HTTPTransport):
    """Passes on what the server answers, and checks it when it has ended."""

    def __init__(self):
        super().__init__()
        self.statuses = []
        self.checked = 0

    def handle_request(self, request):
        response = super().handle_request(request)
        self.statuses.append(response.status_code)
        response.stream = Recorded(response.stream, request, response, self)
        return response


class Recorded(httpx2.SyncByteStream):
    def __init__(self, inner, request, response, recorder):
        self.inner, self.request, self.response, self.recorder = inner, request, response, recorder
        self.body = b""

    def __iter__(self):
        for piece in self.inner:
            self.body += piece
            yield piece

    def close(self):
        self.inner.close()
        if self.body:
            kind = self.response.headers["content-type"]
            self.recorder.checked += check(self.request.url.path, self.response.status_code, kind, self.body)
            assert re.fullmatch(r"[\w-]+", self.response.headers["x-request-id"])
            self.body = b""


def recorded():
    """An HTTP client for an SDK; its `recorder` says what was seen."""
    recorder = Recorder()
    client = httpx2.Client(transport=recorder, timeout=60)
    client.recorder = recorder
    return client
