#!/usr/bin/env python3
"""The rival of `cargo bench --bench bars -- embeddings`: HuggingFace transformers on an encoder's folder.

Reads one JSON line, {"texts": [[token ids], …], "batch": 32, "threads": 2}; then for each further line computes all texts
and prints the seconds it took. Texts are taken in the order they come, padded to the longest of their batch, as
`tokenizer(texts, padding=True)` does; of each the mean over its tokens, scaled to length 1. The last line printed is the
first vector, to be compared.
"""
import json
import sys
import time

try:
    import torch
    from transformers import AutoModel
except ImportError as missing:
    print(f"{missing}: pip install torch transformers safetensors", file=sys.stderr)
    sys.exit(2)


def embed(model, texts, size):
    vectors = []
    for at in range(0, len(texts), size):
        batch = texts[at : at + size]
        longest = max(map(len, batch))
        ids = torch.tensor([text + [0] * (longest - len(text)) for text in batch])
        mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in batch])
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        vectors.append(torch.nn.functional.normalize(mean))
    return torch.cat(vectors)


def main():
    model = AutoModel.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
    given = json.loads(sys.stdin.readline())
    torch.set_num_threads(given["threads"])
    vectors = None
    print("ready", flush=True)
    with torch.inference_mode():
        for _ in sys.stdin:
            began = time.perf_counter()
            vectors = embed(model, given["texts"], given["batch"])
            print(time.perf_counter() - began, flush=True)
    print(json.dumps(vectors[0].tolist()), flush=True)


main()
