"""From logits to a token: pure functions, the torch backend's sampler and the definition that every other sampler is
tested against.

One number in [0, 1) decides one draw. The order of everything is fixed, so that the same logits and number give the
same token anywhere:

0. factors, where a slot has some, change logits one by one: see `adjusted`;
1. weights p[i] = exp((logits[i] - max) / temperature), float32;
2. top-k keeps the k largest logits, the lower index first among equals; top-p then keeps the shortest run of those,
largest first, whose
   weight reaches top_p of what top-k kept;
3. the draw is the first index whose running sum of weights, in float64 and index order, exceeds uniform times the
total.

Temperature 0, or a range of one token, takes the first largest logit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def adjusted(logits: Floats, factors: Floats, penalties: bool = False) -> Floats:
    """The logits under a session's factors, one for each: 1 leaves a logit, 0 forbids its token (its weight becomes 0),
    any other f makes its odds f times what they were, at temperature 1. If they are penalties, f divides a logit that
    is positive and multiplies one that is not: the repetition penalty of CTRL (Keskar et al., 2019), as mamba_ssm's
    generation has it.
    """
    some = np.where(factors > 0, factors, np.float32(1))
    changed = np.where(logits > 0, logits / some, logits * some) if penalties else logits + np.log(some)
    return np.where(factors == 0, np.float32(-np.inf), changed).astype(np.float32)


def taken_away(
    logits: Floats, factors: Floats, uniform: float, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
    penalties: bool = False,
) -> tuple[float, bool]:  # fmt: skip
    """What forbidding takes away from one draw. Arguments as `draw`'s and `adjusted`'s; logits before `adjusted`.
    Return: the share of the weights that forbidden tokens (factor 0) would have, and whether the same number would have
    drawn one of them."""
    forbidden = factors == 0
    logits = adjusted(logits, np.where(forbidden, np.float32(1.0), factors), penalties)
    hit = bool(forbidden[draw(logits, uniform, temperature, top_k, top_p)])
    if temperature == 0.0 or len(logits) == 1:
        return float(hit), hit
    p = weights(logits, temperature, top_k, top_p).astype(np.float64)
    return float(p[forbidden].sum() / p.sum()), hit


def draw(logits: Floats, uniform: float, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> int:
    """Arguments: logits float32 [n]; uniform in [0, 1); top_k 0 and top_p 1 keep all. Return: an index."""
    if temperature == 0.0 or len(logits) == 1:
        return int(np.argmax(logits))
    p = weights(logits, temperature, top_k, top_p)
    running = np.cumsum(p, dtype=np.float64)
    index = int(np.searchsorted(running, np.float64(np.float32(uniform)) * running[-1], side="right"))
    return index if index < len(p) else int(np.flatnonzero(p)[-1])


def weights(logits: Floats, temperature: float, top_k: int, top_p: float) -> Floats:
    """What `draw` draws by, float32 [n], zero where top-k or top-p leaves a member out; not normalised."""
    scale = np.float32(1.0) / np.float32(temperature)
    p: Floats = np.exp((logits - logits.max()) * scale, dtype=np.float32)
    if 0 < top_k < len(p) or top_p < 1.0:
        keep = ranking(logits)[: top_k if top_k > 0 else len(p)]
        if top_p < 1.0:
            running = np.cumsum(p[keep], dtype=np.float64)
            keep = keep[
                : max(1, int(np.searchsorted(running, np.float64(np.float32(top_p)) * running[-1], side="left")) + 1)
            ]
        kept = np.zeros_like(p)
        kept[keep] = p[keep]
        return kept
    return p


def ranking(logits: Floats) -> npt.NDArray[np.intp]:
    """Indices from the largest logit to the smallest, the lower index first among equals."""
    return np.argsort(-logits, kind="stable")
