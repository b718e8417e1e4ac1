"""The values of an adapter's weights, looked through in chunks: NaN, infinity, weights that change nothing, and such that overflow.

The last check of `validate.py`. One NaN in a batch's adapter answers with garbage and no error, and an adapter whose every product is
zero answers exactly like its base: both are most often a failed save, and neither would be noticed while serving. Weights that are finite
and far too large become NaN inside the engine, where they stay in the KV cache: on the CPU, requests of others that get these blocks next
answered with NaN too. So they must not reach an engine at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from adapters_store.errors import InvalidAdapter, InvalidRequest
from adapters_store.lora_tensors import LoraPair, read_pairs, some
from adapters_store.safetensors_header import TensorInfo, read_header

CHUNK_BYTES = 4 << 20

# The largest scaling x |A| x |B| of a module that is taken. Trained adapters stay far below 100. RMSNorm brings each layer's input back to
# about 1 and squares it on the way, in float32, which overflows at 3e38: this is far below the root of that, whatever the model's width.
MAX_PRODUCT = 1e6

# Without their signs floats are in the order of their bits, infinity and NaN last: so bfloat16, which numpy lacks, is read like the
# others, as unsigned integers.
_LAYOUTS: dict[str, tuple[Any, int]] = {  # dtype -> (numpy integer, all bits but the sign)
    "F32": (np.dtype("<u4"), 0x7FFFFFFF),
    "F16": (np.dtype("<u2"), 0x7FFF),
    "BF16": (np.dtype("<u2"), 0x7FFF),
}


@dataclass(frozen=True, slots=True)
class _Values:
    """`largest` is the largest absolute value; infinite or NaN where one is."""

    largest: float

    @property
    def finite(self) -> bool:
        return math.isfinite(self.largest)

    @property
    def zero(self) -> bool:
        return self.largest == 0.0


def inspect_values(folder: Path) -> None:
    """Read the weights of an adapter's folder through, in bounded memory.

    Raises InvalidAdapter, naming the tensors, when any value is NaN or infinite or when no pair changes anything. Blocks: run it in
    a thread.
    """
    path = folder / "adapter_model.safetensors"
    try:
        faults = list(value_faults(path, read_pairs(read_header(path))))
    except InvalidRequest as error:
        raise InvalidAdapter([error.message]) from None
    if faults:
        raise InvalidAdapter(faults)


def value_faults(path: Path, pairs: Sequence[LoraPair], scaling: float = 1.0) -> Iterator[str]:
    """Every reason why the pairs' values cannot be served. Tensors of other dtypes than F32, F16 and BF16 are passed over.

    `scaling` is what the product of A and B is multiplied with: alpha / r, or alpha / sqrt(r) with rsLoRA.
    """
    broken: list[str] = []
    huge: list[str] = []
    changes_something = False
    with path.open("rb") as file:
        for pair in pairs:
            if pair.a.dtype not in _LAYOUTS or pair.b.dtype not in _LAYOUTS:
                return
            a, b = _look(file, pair.a), _look(file, pair.b)
            broken += [f"{pair.module}.lora_{side}" for side, values in (("A", a), ("B", b)) if not values.finite]
            changes_something = changes_something or not (a.zero or b.zero)
            if a.finite and b.finite and abs(scaling) * a.largest * b.largest > MAX_PRODUCT:
                huge.append(f"{pair.module} (alpha/r {scaling:.3g}, A up to {a.largest:.3g}, B up to {b.largest:.3g})")
    if broken:
        yield f"weights hold NaN or infinity: {some(broken)}; the training diverged or the save failed, upload a good checkpoint."
    if huge:
        yield f"weights are so large that answers would overflow: {some(huge)}; the training diverged, upload a good checkpoint."
    if pairs and not changes_something:
        yield "every lora_A or lora_B is zero, so the adapter would change nothing: save it after training."


def _look(file: BinaryIO, info: TensorInfo) -> _Values:
    integer, magnitude = _LAYOUTS[info.dtype]
    largest = 0
    file.seek(info.start)
    left_bytes = info.end - info.start
    while left_bytes > 0:
        chunk = file.read(min(CHUNK_BYTES, left_bytes))
        if not chunk:
            raise InvalidRequest("adapter_model.safetensors became shorter while it was read: upload it again.")
        left_bytes -= len(chunk)
        values: NDArray[Any] = np.frombuffer(chunk, dtype=integer)
        largest = max(largest, int(np.max(values & magnitude)))
    return _Values(_as_float(largest, info.dtype))


def _as_float(bits: int, dtype: str) -> float:
    """The float whose bits these are."""
    if dtype == "F16":
        return float(np.array(bits, dtype="<u2").view("<f2"))
    return float(np.array(bits << 16 if dtype == "BF16" else bits, dtype="<u4").view("<f4"))
