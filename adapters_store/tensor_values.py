"""The values of an adapter's weights, looked through in chunks: NaN, infinity, and weights that change nothing.

The last check of `validate.py`. One NaN in a batch's adapter answers with garbage and no error, and an adapter whose every product is
zero answers exactly like its base: both are most often a failed save, and neither would be noticed while serving.
"""

from __future__ import annotations

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

# A float is infinite or NaN when all its exponent bits are set, and zero when nothing but its sign is: so bfloat16, which numpy
# lacks, is read like the others, as unsigned integers.
_LAYOUTS: dict[str, tuple[Any, int, int]] = {  # dtype -> (numpy integer, exponent bits, all bits but the sign)
    "F32": (np.dtype("<u4"), 0x7F800000, 0x7FFFFFFF),
    "F16": (np.dtype("<u2"), 0x7C00, 0x7FFF),
    "BF16": (np.dtype("<u2"), 0x7F80, 0x7FFF),
}


@dataclass(frozen=True, slots=True)
class _Values:
    finite: bool
    zero: bool


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


def value_faults(path: Path, pairs: Sequence[LoraPair]) -> Iterator[str]:
    """Every reason why the pairs' values cannot be served. Tensors of other dtypes than F32, F16 and BF16 are passed over."""
    broken: list[str] = []
    changes_something = False
    with path.open("rb") as file:
        for pair in pairs:
            if pair.a.dtype not in _LAYOUTS or pair.b.dtype not in _LAYOUTS:
                return
            a, b = _look(file, pair.a), _look(file, pair.b)
            broken += [f"{pair.module}.lora_{side}" for side, values in (("A", a), ("B", b)) if not values.finite]
            changes_something = changes_something or not (a.zero or b.zero)
    if broken:
        yield f"weights hold NaN or infinity: {some(broken)}; the training diverged or the save failed, upload a good checkpoint."
    if pairs and not changes_something:
        yield "every lora_A or lora_B is zero, so the adapter would change nothing: save it after training."


def _look(file: BinaryIO, info: TensorInfo) -> _Values:
    integer, exponent, magnitude = _LAYOUTS[info.dtype]
    finite, zero = True, True
    file.seek(info.start)
    left_bytes = info.end - info.start
    while left_bytes > 0:
        chunk = file.read(min(CHUNK_BYTES, left_bytes))
        if not chunk:
            raise InvalidRequest("adapter_model.safetensors became shorter while it was read: upload it again.")
        left_bytes -= len(chunk)
        values: NDArray[Any] = np.frombuffer(chunk, dtype=integer)
        finite = finite and not bool(np.any((values & exponent) == exponent))
        zero = zero and not bool(np.any(values & magnitude))
    return _Values(finite, zero)
