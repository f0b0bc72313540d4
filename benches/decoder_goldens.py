#!/usr/bin/env python3
"""Logits of small decoders by HuggingFace transformers: `tests/it/cases/decoders.json`.

    python3 benches/decoder_goldens.py > tests/it/cases/decoders.json

The weights are those of `synthetic:`, so only configurations and results are kept: of each prompt the logits behind its
last token.
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

VOCAB = 96
SLIDING, FULL = "sliding_attention", "full_attention"
BASE = {
    "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 80, "vocab_size": VOCAB, "hidden_act": "silu", "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "pad_token_id": 0, "torch_dtype": "float32",
}


def rope(theta, kind="default", **more):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


def configurations():
    yarn = rope(1e4, "yarn", factor=8.0, original_max_position_embeddings=32, beta_fast=8.0, beta_slow=1.0)
    long = rope(1e4, "longrope", short_factor=[1.0, 1.1, 1.3, 1.7, 2.0, 3.0], long_factor=[4.0] * 6,
                original_max_position_embeddings=64, partial_rotary_factor=0.75)
    llama3 = rope(5e5, "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                  original_max_position_embeddings=32)
    experts = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 40}
    gemma = {"hidden_activation": "gelu_pytorch_tanh", "hidden_act": None, "tie_word_embeddings": True}
    for name, kind, more in [
        ("Llama", "llama", {**llama3, "attention_bias": True, "mlp_bias": True}),
        ("Llama", "llama", rope(1e4, "linear", factor=4.0)),
        ("Llama", "llama", {**yarn, "num_key_value_heads": 4}),
        ("Mistral", "mistral", {**rope(1e6), "head_dim": 24, "sliding_window": None}),
        ("Mistral", "mistral", {**rope(1e6), "sliding_window": 9}),
        ("Ministral", "ministral", {**rope(1e6), "sliding_window": 17, "layer_types": [SLIDING, FULL, SLIDING, FULL]}),
        ("Qwen2", "qwen2", {**rope(1e6), "tie_word_embeddings": True, "use_sliding_window": False}),
        ("Qwen2", "qwen2", {**yarn, "use_sliding_window": False}),
        ("Qwen2", "qwen2", {**rope(1e6), "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}),
        ("Gemma2", "gemma2", {**rope(1e4), **gemma, "head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 8,
                              "attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0}),
        ("Gemma3", "gemma3_text", {**gemma, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8,
                                   "layer_types": [SLIDING, SLIDING, FULL, SLIDING], "rope_parameters": {
                                       FULL: rope(1e6, "linear", factor=8.0)["rope_parameters"],
                                       SLIDING: rope(1e4)["rope_parameters"]}}),
        ("Qwen3", "qwen3", {**rope(1e6), "head_dim": 16, "use_sliding_window": False}),
        ("Phi3", "phi3", {**rope(1e4), "sliding_window": 16, "hidden_size": 64}),
        ("Phi3", "phi3", {**long, "sliding_window": None, "hidden_size": 64, "original_max_position_embeddings": 64}),
        # Of its prompts two are longer than what the short factors are for.
        ("Phi3", "phi3", {**rope(1e4, "longrope", short_factor=[1.0, 1.1, 1.3, 1.7, 2.0, 3.0],
                                 long_factor=[1.2, 1.9, 3.5, 6.0, 9.0, 14.0], original_max_position_embeddings=32,
                                 partial_rotary_factor=0.75),
                          "sliding_window": None, "hidden_size": 64, "original_max_position_embeddings": 32}),
        ("Granite", "granite", {**rope(1e4), "embedding_multiplier": 12.0, "residual_multiplier": 0.22,
                                "attention_multiplier": 0.08, "logits_scaling": 8.0, "tie_word_embeddings": True}),
        ("Mixtral", "mixtral", {**rope(1e6), "sliding_window": None, "num_local_experts": 6, "num_experts_per_tok": 2}),
        ("Mixtral", "mixtral", {**rope(1e6), "sliding_window": 9, "num_local_experts": 4, "num_experts_per_tok": 3}),
        ("Qwen2Moe", "qwen2_moe", {**rope(1e6), **experts, "shared_expert_intermediate_size": 56, "norm_topk_prob": False,
                                   "use_sliding_window": False, "decoder_sparse_step": 1, "mlp_only_layers": []}),
        ("Qwen3Moe", "qwen3_moe", {**rope(1e6), **experts, "head_dim": 16, "norm_topk_prob": True, "mlp_only_layers": [1],
                                   "use_sliding_window": False, "decoder_sparse_step": 1}),
        ("Qwen3Moe", "qwen3_moe", {**rope(1e6), **experts, "head_dim": 16, "norm_topk_prob": False, "mlp_only_layers": [],
                                   "use_sliding_window": False, "decoder_sparse_step": 2}),
        ("GptOss", "gpt_oss", {**rope(15e4, "yarn", factor=8.0, original_max_position_embeddings=32, beta_fast=32.0,
                                      beta_slow=1.0, truncate=False), "head_dim": 16, "attention_bias": True,
                               "num_local_experts": 6, "num_experts_per_tok": 3, "sliding_window": 9,
                               "layer_types": [SLIDING, FULL, SLIDING, FULL], "swiglu_limit": 7.0}),
        ("Olmo2", "olmo2", {**rope(5e5), "hidden_size": 64}),
        ("SmolLM3", "smollm3", {**rope(2e6), "hidden_size": 64, "no_rope_layers": [1, 1, 0, 1],
                                "use_sliding_window": False, "layer_types": ["full_attention"] * 4}),
        ("Glm4", "glm4", {**rope(1e4, partial_rotary_factor=0.5), "head_dim": 16, "attention_bias": True}),
    ]:
        config = {**BASE, **more}
        config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
        if config["head_dim"] % 8:
            config["hidden_size"], config["head_dim"] = 64, 16
        yield f"{name}ForCausalLM", {"model_type": kind, **config}


def prompts():
    for length in (1, 7, 40, 60):
        yield [1 + (i * i * 31 + i * 17 + length) % (VOCAB - 2) for i in range(length)]


def model_of(architecture, config):
    of_kind = dict(config)
    made = transformers.AutoConfig.for_model(of_kind.pop("model_type"), **of_kind)
    made._attn_implementation = "eager"
    model = getattr(transformers, architecture)(made).eval().float()
    tied = config["tie_word_embeddings"]
    names = [(name, t) for name, t in model.state_dict().items() if not (tied and name == "lm_head.weight")]
    layers = config["num_hidden_layers"]
    made = {name: tensor_of(name, tuple(t.shape), config["model_type"], layers) for name, t in names}
    model.load_state_dict(made, strict=not tied)
    return model


def tensor_of(name, shape, kind, layers):
    """A tensor by the name that a checkpoint has for it: the experts of a layer lie in one tensor only here."""
    if kind == "mixtral":
        name = name.replace(".mlp.", ".block_sparse_moe.")
    gate, up, down = ("w1", "w3", "w2") if kind == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    if kind == "gpt_oss" and ".experts." in name:
        return stack_of_gpt_oss(name, shape, layers)
    one = lambda e, which, out: weight(name.rsplit(".", 1)[0] + f".{e}.{which}.weight", (out, shape[2]), layers)
    if name.endswith(".experts.gate_up_proj"):
        half = shape[1] // 2
        return torch.stack([torch.cat([one(e, gate, half), one(e, up, half)]) for e in range(shape[0])])
    if name.endswith(".experts.down_proj"):
        return torch.stack([one(e, down, shape[1]) for e in range(shape[0])])
    return weight(name, shape, layers)


def stack_of_gpt_oss(name, shape, layers):
    """Matrices on their sides, gates and ups in turn."""
    stack, tensor = name.rsplit(".", 1)
    part, bias = tensor.removesuffix("_bias"), tensor.endswith("_bias")
    outputs = shape[-1] // (2 if part == "gate_up_proj" else 1)

    def one(expert, which):
        of_expert = f"{stack}.{expert}.{which}_proj"
        if bias:
            return weight(f"{of_expert}.bias", (outputs,), layers)
        return weight(f"{of_expert}.weight", (outputs, shape[1]), layers).T

    if part == "down_proj":
        return torch.stack([one(e, "down") for e in range(shape[0])])
    both = lambda e: torch.stack([one(e, "gate"), one(e, "up")], dim=-1).flatten(-2)
    return torch.stack([both(e) for e in range(shape[0])])


def main():
    cases = []
    for architecture, config in configurations():
        model, results = model_of(architecture, config), []
        for ids in prompts():
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double()
            results.append([round(x, 6) for x in logits.tolist()])
        cases.append({"config": {"architectures": [architecture], **config}, "results": results})
    made = {"transformers": transformers.__version__, "torch": torch.__version__}
    print(json.dumps({"made_by": made, "prompts": list(prompts()), "cases": cases}))


main()
