#!/usr/bin/env python3
"""Writes tests/it/cases/awq.json: a matrix of four bits as AutoAWQ packs it and multiplies it out, and as it repacks it for
exllama, which is GPTQ's way.

    pip install torch && pip download --no-deps autoawq==0.2.9 && tar xzf autoawq-0.2.9.tar.gz
    python3 benches/awq_golden.py autoawq-0.2.9/awq/utils/packing_utils.py > tests/it/cases/awq.json
"""

import importlib.util
import json
import sys

import torch

INPUTS, OUTPUTS, GROUP = 64, 8, 32
# Scales are whole numbers of these, so that weights are.
UNIT = 1 / 256

spec = importlib.util.spec_from_file_location("packing_utils", sys.argv[1])
awq = importlib.util.module_from_spec(spec)
spec.loader.exec_module(awq)

torch.manual_seed(7)
words = lambda *shape: torch.randint(-(2**31), 2**31, shape).to(torch.int32)
qweight, qzeros = words(INPUTS, OUTPUTS // 8), words(INPUTS // GROUP, OUTPUTS // 8)
# One zero point of 0: less one it borrows.
qzeros[1] &= ~0xF0
scales = torch.randint(1, 100, (INPUTS // GROUP, OUTPUTS)) * UNIT
weights = awq.dequantize_gemm(qweight, qzeros, scales, 4, GROUP) / UNIT
exllama = awq.unpack_reorder_pack(qweight, qzeros, 4)
print(
    json.dumps(
        {
            "awq": {"qweight": qweight.tolist(), "qzeros": qzeros.tolist()},
            "gptq": {"qweight": exllama[0].tolist(), "qzeros": exllama[1].tolist()},
            "scales_in_256ths": scales.div(UNIT).int().tolist(),
            "weights_in_256ths": weights.int().T.tolist(),
        },
        separators=(",", ":"),
    ).replace('],"', '],\n"')
)
