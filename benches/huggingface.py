#!/usr/bin/env python3
"""HuggingFace transformers on a checkpoint, to stand beside `hashwatt bench` on the same machine.

    hashwatt models write synthetic:llama-3.2-1b /tmp/model
    python3 benches/huggingface.py /tmp/model --out hf.json [--beside REPORT.json]

Three ways: eager (dynamic cache), static cache with torch.compile, and its continuous batching. Greedy, so many prompt
tokens in and exactly so many out, as `hashwatt bench --input fixed:N --output fixed:N` does it. Prints JSON: of each way
and number of sequences the median tokens per second with the least and the most of the rounds. With --beside, hashwatt's
figure for the same number of sequences and the ratio. A way that cannot run here says why in its place.
"""
import argparse
import json
import statistics
import sys
import time

try:
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, GenerationConfig
except ImportError as missing:
    print(f"{missing}: pip install torch transformers safetensors psutil", file=sys.stderr)
    sys.exit(2)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a checkpoint")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--input", type=int, default=128, help="prompt tokens")
    parser.add_argument("--output", type=int, default=128, help="answer tokens")
    parser.add_argument("--sequences", default="1,8,32", help="at once, one point each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", default="eager,static,continuous")
    parser.add_argument("--beside", help="report.json of hashwatt bench")
    parser.add_argument("--out", help="file for the JSON; standard output otherwise")
    return parser.parse_args()


def prompts(count, length, vocabulary):
    """Ids that no two sequences share, so that no cache of prefixes helps."""
    numbers = torch.Generator().manual_seed(1)
    return torch.randint(3, min(1000, vocabulary), (count, length), generator=numbers)


def wait(device):
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def generate(model, ids, output):
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        generation_config=GenerationConfig(
            max_new_tokens=output,
            min_new_tokens=output,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
            cache_implementation="static" if getattr(model, "is_static", False) else None,
        ),
    )


def batched(model, ids, output):
    config = GenerationConfig(
        max_new_tokens=output, min_new_tokens=output, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    answers = model.generate_batch(inputs=ids.tolist(), generation_config=config, progress_bar=False)
    made = sum(len(answer.generated_tokens) for answer in answers.values())
    if made != output * len(ids):
        raise RuntimeError(f"{made} tokens where {output * len(ids)} were asked for")


def load(options, way):
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype="auto").to(options.device).eval()
    if way == "static":
        model.is_static = True
        model.forward = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)
    return model


def measure(options, way, model, count):
    ids = prompts(count, options.input, model.config.vocab_size)
    run = batched if way == "continuous" else generate
    ids = ids if way == "continuous" else ids.to(options.device)
    rates = []
    # The first rounds compile and capture.
    for number in range(options.rounds + 2):
        wait(options.device)
        began = time.perf_counter()
        run(model, ids, options.output)
        wait(options.device)
        if number >= 2:
            rates.append(count * options.output / (time.perf_counter() - began))
    return {"median": statistics.median(rates), "least": min(rates), "most": max(rates)}


def beside(path, count):
    """hashwatt's tokens per second at so many sequences, if its report has such a point."""
    with open(path) as file:
        report = json.load(file)
    for point in report.get("points", []):
        if point.get("kind") == "concurrency" and point.get("concurrency") == count:
            return point["output_tokens_per_second"]["value"]
    return None


def main():
    options = arguments()
    report = {
        "model": options.model,
        "device": options.device,
        "device_name": torch.cuda.get_device_name() if options.device.startswith("cuda") else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "input_tokens": options.input,
        "output_tokens": options.output,
        "rounds": options.rounds,
        "points": [],
    }
    with torch.no_grad():  # continuous batching works in a thread of its own, which inference mode would not cover
        for way in options.ways.split(","):
            try:
                model = load(options, way)
            except Exception as problem:  # what a library throws is its own affair
                report["points"].append({"way": way, "not_measured": f"{type(problem).__name__}: {problem}"})
                continue
            for count in map(int, options.sequences.split(",")):
                point = {"way": way, "sequences": count}
                try:
                    point["tokens_per_second"] = measure(options, way, model, count)
                except Exception as problem:
                    point["not_measured"] = f"{type(problem).__name__}: {problem}"
                ours = options.beside and beside(options.beside, count)
                if ours and "tokens_per_second" in point:
                    point["hashwatt_tokens_per_second"] = ours
                    point["hashwatt_over_this"] = ours / point["tokens_per_second"]["median"]
                report["points"].append(point)
            del model
            if options.device.startswith("cuda"):
                torch.cuda.empty_cache()
    text = json.dumps(report, indent=2)
    if options.out:
        with open(options.out, "w") as file:
            file.write(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
