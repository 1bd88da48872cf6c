"""What methods that look at inputs are worth on a real model: perplexity through transformers on a text not calibrated on.

SmolLM2-135M is decoded to float32 and the inputs of its linear layers are recorded over one part of the Python reference's
topics. Its 210 layer matrices, rows of 576 and 1536 weights, are then quantized by each of CASES and decoded in place; another
part of the topics is read. docs/calibrated-smollm2.md keeps a table.

    .venv-oracles/bin/python tools/calibrated_perplexity.py [TARGET:METHOD[:RULE] ...]

Exits 1 where GPTQ or AWQ is not better than round-to-nearest in the same format. Needs torch and transformers.
"""

from __future__ import annotations

import hashlib
import math
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch
from demo import print_table
from installed import SMOLLM2, package_file
from qconvert.calibration import Calibration, open_calibration, write_calibration
from qconvert.conversion import dequantize
from record_calibration import cut, record
from transformers import AutoModelForCausalLM, AutoTokenizer

import qformat

N_RECORDED, N_READ, N_CHUNK = 16384, 2048, 512
LAYERS = "model.layers."
NONE = "-"  # said of a rule where the method's own is meant
BETTER = ("gptq", "gptq-ordered", "awq", "awq-weights")


@dataclass(frozen=True, slots=True)
class Case:
    """A way to quantize; without a rule, by the method's own."""

    target: str
    method: str
    rule: str | None = None


CASES = (
    *(Case("int4_g64", method) for method in ("rtn", "mse", "gptq", "gptq-ordered", "awq")),
    Case("int4_g64", "gptq", "mse"),
    *(Case(target, method) for target in ("nf4", "mxfp4") for method in ("rtn", "mse")),
)


def perplexity(model: torch.nn.Module, chunks: list[list[int]]) -> float:
    """Give a model's perplexity: every token but the first of each piece is scored."""
    total, n_scored = 0.0, 0
    with torch.no_grad():
        for chunk in chunks:
            ids = torch.tensor([chunk])
            logits = model(ids).logits[0, :-1]
            total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
            n_scored += len(chunk) - 1
    return math.exp(total / n_scored)


def texts() -> tuple[str, str]:
    """Give the text to calibrate on and the one to judge by: every other topic, by name."""
    names = sorted(topics)
    recorded, read = ("\n".join(topics[name] for name in names[first::2]) for first in (0, 1))
    return recorded, read


def run(model: torch.nn.Module, case: Case, calibration: Calibration, chunks: list[list[int]]) -> tuple[str, ...]:
    """Give a line of the table, and put the weights back."""
    began, n_bytes, n_weights, noise, signal = time.perf_counter(), 0, 0, 0.0, 0.0
    layers = [m for m in model.named_modules() if isinstance(m[1], torch.nn.Linear) and m[0].startswith(LAYERS)]
    kept = {name: layer.weight.data for name, layer in layers}
    for name, layer in layers:
        weights, statistics = layer.weight.data.numpy(), calibration[f"{name}.weight"]
        known = None if case.method == "rtn" else statistics
        packed = qformat.quantize(weights, case.target, case.rule, method=case.method, calibration=known)
        decoded = packed.dequantize()
        difference = decoded.astype(np.float64) - weights
        noise += float(((difference @ statistics.hessian) * difference).sum())
        signal += float(((weights @ statistics.hessian) * weights).sum())
        n_bytes, n_weights = n_bytes + packed.n_bytes, n_weights + weights.size
        layer.weight.data = torch.from_numpy(decoded)
    seconds = time.perf_counter() - began
    found = perplexity(model, chunks)
    for name, layer in layers:
        layer.weight.data = kept[name]
    bits, decibels = 8 * n_bytes / n_weights, 10 * math.log10(signal / noise)
    return (case.target, case.method, case.rule or NONE, f"{bits:.3f}", f"{decibels:.2f}", f"{found:.3f}", f"{seconds:.0f}")


def main(cases: tuple[Case, ...]) -> int:
    """Print the table; returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="qfmt-calibrated-") as place:
        source, folder, file = (Path(place) / name for name in ("source.gguf", "float", "calibration.safetensors"))
        source.symlink_to(package_file(*SMOLLM2))
        dequantize(source, folder, "f32")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        ids = [tokenizer(text)["input_ids"][:n] for text, n in zip(texts(), (N_RECORDED, N_READ), strict=True)]
        recorded, read = (cut(one, N_CHUNK) for one in ids)
        for what, one in zip(("recorded", "read"), ids, strict=True):
            print(f"{what}: {len(one)} tokens, digest {hashlib.sha256(np.array(one, '<i4').tobytes()).hexdigest()[:12]}")
        began = time.perf_counter()
        write_calibration(file, record(model, recorded), "float32")
        print(
            f"recorded in {time.perf_counter() - began:.0f} s; float32: perplexity {perplexity(model, read):.3f}\n", flush=True
        )
        lines = []
        with open_calibration(file) as calibration:
            for case in cases:
                lines.append(run(model, case, calibration, read))
                print(*lines[-1], file=sys.stderr, flush=True)
    print_table(("target", "method", "rule", "bits/weight", "output SQNR dB", "perplexity", "s"), lines)
    plain = {line[0]: float(line[5]) for line in lines if line[1:3] == ("rtn", NONE)}
    worse = [line for line in lines if line[1] in BETTER and float(line[5]) >= plain.get(line[0], math.inf)]
    print(f"\n{len(worse)} of {len(lines)} cases with calibration not better than round-to-nearest")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main(tuple(Case(*said.split(":")) for said in sys.argv[1:]) or CASES))
