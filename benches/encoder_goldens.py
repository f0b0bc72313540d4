#!/usr/bin/env python3
"""Vectors and scores of small encoders by HuggingFace transformers: `tests/it/cases/encoders.json`.

    python3 benches/encoder_goldens.py > tests/it/cases/encoders.json

The weights are those of `synthetic:`, computed here by the same formula (`src/model/weights/synthetic.rs`), so only
configurations and results are kept. Of each model that embeds: the mean over the tokens (of a decoder the last one),
scaled to length 1; of each that scores: the sigmoid of its one logit. Nomic-BERT's code is not in transformers: it
comes from the hub, and is left out.
"""
import json
import sys

try:
    import torch
    import transformers
except ImportError as missing:
    print(f"{missing}: pip install numpy torch transformers", file=sys.stderr)
    sys.exit(2)

from synthetic import weight

VOCAB = 300


def configurations():
    bert = {
        "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 80,
        "vocab_size": VOCAB, "hidden_act": "gelu", "max_position_embeddings": 140, "layer_norm_eps": 1e-12,
    }
    modern = {
        "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 80,
        "vocab_size": VOCAB, "max_position_embeddings": 140, "norm_eps": 1e-5, "layer_norm_eps": 1e-5,
        "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2,
        "global_attn_every_n_layers": 3, "global_rope_theta": 160000.0, "local_attention": 16,
        "local_rope_theta": 10000.0,
    }
    for kind, name, base, more in [
        ("bert", "Bert", bert, {"pad_token_id": 0, "type_vocab_size": 2}),
        ("roberta", "Roberta", bert, {"pad_token_id": 1, "type_vocab_size": 1}),
        ("xlm-roberta", "XLMRoberta", bert, {"pad_token_id": 1, "type_vocab_size": 1}),
        ("modernbert", "ModernBert", modern, {"classifier_pooling": "cls"}),
        ("modernbert", "ModernBert", modern, {"classifier_pooling": "mean"}),
    ]:
        for end, labels in [("Model", {}), ("ForSequenceClassification", {"num_labels": 1})]:
            yield f"{name}{end}", {"model_type": kind, **base, **more, **labels}
    yield "Qwen3Model", {
        "model_type": "qwen3", "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 80, "vocab_size": VOCAB, "hidden_act": "silu",
        "max_position_embeddings": 140, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": True,
        "attention_bias": False, "use_sliding_window": False, "torch_dtype": "float32",
    }


def texts():
    """Token ids of some lengths, none of them padding; the segment of each token."""
    for length in (1, 7, 40, 128):
        ids = [4 + (i * i * 31 + i * 17 + length) % (VOCAB - 8) for i in range(length)]
        yield ids, [int(i > length // 2) for i in range(length)]


def model_of(architecture, config):
    of_kind = dict(config)
    made = transformers.AutoConfig.for_model(of_kind.pop("model_type"), **of_kind)
    made._attn_implementation = "eager"
    model = getattr(transformers, architecture)(made).eval()
    # A decoder's tensors are those of its model with a head.
    prefix, layers = ("model." if config["model_type"] == "qwen3" else ""), config["num_hidden_layers"]
    tensors = [(name, t) for name, t in model.state_dict().items() if t.is_floating_point()]
    state = {name: weight(prefix + name, tuple(t.shape), layers) for name, t in tensors}
    model.load_state_dict(state, strict=False)
    return model


def main():
    cases = []
    for architecture, config in configurations():
        model, results = model_of(architecture, config), []
        for ids, types in texts():
            given = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
            if config["model_type"] == "bert":
                given["token_type_ids"] = torch.tensor([types])
            with torch.no_grad():
                out = model(**given)
            if architecture.endswith("Model"):
                hidden = out.last_hidden_state[0].double()
                mean = hidden[-1] if architecture == "Qwen3Model" else hidden.mean(0)
                results.append([round(x, 7) for x in (mean / mean.norm()).tolist()])
            else:
                results.append([round(torch.sigmoid(out.logits[0, 0].double()).item(), 7)])
        cases.append({"config": {"architectures": [architecture], **config}, "results": results})
    inputs = [{"ids": ids, "types": types} for ids, types in texts()]
    made = {"transformers": transformers.__version__, "torch": torch.__version__}
    print(json.dumps({"made_by": made, "inputs": inputs, "cases": cases}))


main()
