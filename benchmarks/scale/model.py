"""A stated transformer as a profile of the planner's: what is computed, sent and held is counted, nothing is measured.

FLOPs of a block a token, forward: 24 d² + 4 s d, d the width and s the tokens of a sequence (Narayanan et al. 2021,
arXiv 2104.04473, without its recomputation); of the output layer 2 d V. Backward it is twice as much, half of it for
the gradient of the input. What autograd keeps is every block's input, 2 s d bytes a sequence, and the block is computed
once more on the way back (Korthikanti et al. 2022, arXiv 2205.05198, full recomputation).
"""

from __future__ import annotations

from dataclasses import dataclass

from syngrad.planner import Estimates, Linear, Machine, Profile, Unit

TOKENS, VOCABULARY = 2048, 50_257
#: an A100 with 80 GB by its data sheet, and the share of its arithmetic that a training reaches: an assumption
PEAK_FLOPS, REACHED, MEMORY_BYTES, MEMORY_BYTES_PER_S = 312e12, 0.4, 80e9, 2.0e12
#: FLOPs and bytes an element: float32 weights and gradients, two moments of Adam
WEIGHT, MOMENTS = 4, 8
#: width of a head that is narrow before the vocabulary, in the row `synthetic:local`
NARROW = 256
FEEDBACK_EVERY = 4


@dataclass(frozen=True)
class Transformer:
    """As GPT-3's (Brown et al. 2020, arXiv 2005.14165, table 2.1)."""

    name: str
    blocks: int
    width: int

    @property
    def parameters(self) -> int:
        return self.blocks * 12 * self.width**2 + 2 * self.width * VOCABULARY


MODELS = {"1.3B": Transformer("1.3B", 24, 2048), "13B": Transformer("13B", 40, 5120)}


def seconds(flops: float) -> float:
    return flops / (PEAK_FLOPS * REACHED)


def profile(model: Transformer, sequences: int) -> Profile:
    """A step of so many sequences: the embedding, the blocks, and the output layer with the loss."""
    d, tokens = model.width, sequences * TOKENS
    message = tokens * d * WEIGHT  # as float32; what crosses is half of it

    def unit(name: str, flops: float, weights: float, again: bool, sends: bool = True, first: bool = False) -> Unit:
        forward = seconds(flops * tokens)
        return Unit(
            name,
            forward_s=forward,
            backward_s=(1.0 if first else 2.0) * forward + (forward if again else 0.0),
            input_gradient_s=0.0 if first else forward,
            parameter_bytes=int(weights * WEIGHT),
            # reads weights, gradients and moments, writes weights and moments
            optimizer_s=weights * (2 * WEIGHT + MOMENTS + WEIGHT + MOMENTS) / MEMORY_BYTES_PER_S,
            optimizer_bytes=int(weights * MOMENTS),
            activation_bytes=2 * tokens * d,
            message_bytes=message if sends else 0,
            context_bytes=tokens * 8 if sends else 0,
            row_bytes=d * WEIGHT,
        )

    block = 24 * d**2 + 4 * TOKENS * d
    units = [unit("embedding", 0.0, d * VOCABULARY, again=False, first=True)]
    units += [unit(f"block{k}", block, 12 * d**2, again=True) for k in range(model.blocks)]
    units.append(unit("output", 2 * d * VOCABULARY, d * VOCABULARY, again=False, sends=False))
    heads = {"default": d * VOCABULARY, "local": d * NARROW + NARROW * VOCABULARY}
    made = {}
    for name, weights in heads.items():
        # forward, back to h, and to its own weights; the default is fitted to what comes back as well
        once = seconds(6 * weights * tokens)
        every = FEEDBACK_EVERY if name == "default" else 0
        made[name] = (
            Estimates(
                once, once if every else 0.0, every, weights * WEIGHT,
                weights * (3 * WEIGHT + 2 * MOMENTS) / MEMORY_BYTES_PER_S, weights * MOMENTS, 2 * tokens * d,
            ),
        ) * (len(units) - 1)  # fmt: skip
    return Profile(f"transformer {model.name}", sequences, tuple(units), estimates=made)


def machine() -> Machine:
    """A host of one device; what its memory has to copy takes time, and nothing else."""
    copy = Linear(0.0, 2 / MEMORY_BYTES_PER_S)
    return Machine(cores=1, copy=copy, pack={"bfloat16": Linear(0.0, 1.5 / MEMORY_BYTES_PER_S)})
