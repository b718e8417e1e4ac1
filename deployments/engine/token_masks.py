"""Requests with `allowed_token_ids` keep to themselves: part of Lorikeet's vLLM plugin (`plugin.py`), on every platform.

vLLM keeps one mask row for each request of a batch. When it swaps two requests, both end with the same row, and when it moves one, the
row it leaves is not cleared: another request, of another tenant, is then held to the first one's tokens, or the first to none. Here the
rows are made anew from what each request asked for, whenever the batch has changed and anyone asked at all.
`tests/system/test_short_path.py` fails without it.
"""

from __future__ import annotations

import functools
from typing import Any

_ASKED = "allowed_token_ids_by_request"


def register() -> None:
    """Wrap two methods of vLLM's input batch; once per process."""
    from vllm.v1.worker.gpu_input_batch import InputBatch

    if getattr(InputBatch, "keeps_masks_apart", False):
        return
    add, make = InputBatch.add_request, InputBatch._make_sampling_metadata

    @functools.wraps(add)
    def add_and_remember(batch: Any, request: Any) -> int:
        index: int = add(batch, request)
        params = request.sampling_params
        if params is not None and params.allowed_token_ids:
            vars(batch).setdefault(_ASKED, {})[request.req_id] = params.allowed_token_ids
        return index

    @functools.wraps(make)
    def make_with_own_masks(batch: Any) -> Any:
        _fill_masks(batch)
        return make(batch)

    InputBatch.add_request = add_and_remember  # type: ignore[method-assign, assignment]
    InputBatch._make_sampling_metadata = make_with_own_masks  # type: ignore[method-assign, assignment]
    InputBatch.keeps_masks_apart = True  # type: ignore[attr-defined]


def _fill_masks(batch: Any) -> None:
    """Write each request's mask row: True for the tokens it may not say."""
    asked: dict[str, list[int]] = vars(batch).get(_ASKED, {})
    for gone in asked.keys() - batch.has_allowed_token_ids:
        del asked[gone]
    if not asked:
        return
    mask = batch.allowed_token_ids_mask_cpu_tensor
    for index, request_id in enumerate(batch.req_ids[: batch.num_reqs]):
        allowed = asked.get(request_id)
        mask[index].fill_(allowed is not None)
        if allowed is not None:
            mask[index][allowed] = False
