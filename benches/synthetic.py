"""The weights of `synthetic:`, by the formula of `src/model/weights/synthetic.rs`: goldens keep no weights."""
import sys

try:
    import numpy
    import torch
except ImportError as missing:
    print(f"{missing}: pip install numpy torch transformers", file=sys.stderr)
    sys.exit(2)

SEED = 7
DEVIATION, MEAN = numpy.float32(37837.227), 2 * 65535


def mix(z):
    z = (z ^ (z >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
    return z ^ (z >> numpy.uint64(31))


def name_hash(name):
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = ((h ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return h


def weight(name, shape, layers):
    """The tensor of this name and shape, as the server's generator makes it."""
    if name.endswith(".bias"):
        mean, deviation = 0.0, 0.02
    elif "norm" in name or "Norm" in name:
        mean, deviation = 1.0, 0.1
    elif "embed" in name:
        mean, deviation = 0.0, 0.02
    else:
        mean, deviation = 0.0, numpy.float32(1) / numpy.sqrt(numpy.float32(shape[-1]))
        if "o_proj" in name or "down_proj" in name or name.endswith(".w2.weight"):
            deviation /= numpy.sqrt(numpy.float32(2 * layers))
    count = int(numpy.prod(shape))
    with numpy.errstate(over="ignore"):
        key = mix(numpy.array([SEED ^ name_hash(name)], dtype=numpy.uint64))
        h = mix(key + numpy.arange(count, dtype=numpy.uint64) * numpy.uint64(0x9E3779B97F4A7C15))
    parts = [((h >> numpy.uint64(s)) & numpy.uint64(0xFFFF)).astype(numpy.int64) for s in (0, 16, 32, 48)]
    centred = (sum(parts) - MEAN).astype(numpy.float32)
    scale = numpy.float32(deviation) / DEVIATION
    return torch.from_numpy(numpy.float32(mean) + centred * scale).reshape(shape)
