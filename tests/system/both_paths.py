"""A process of its own for `test_short_path.py`: one engine without Serve, each request asked on every path through it.

    python -m tests.system.both_paths MODEL_FOLDER ADAPTER_FOLDER < requests.json > answers.json

Reads a list of {"adapter": bool, "body": {…}}, writes for each {"is_plain", "short", "full", "short_whole", "full_whole"}: what the short
path streamed, what vLLM's own path streamed, and what each answered to the same request unstreamed. An answer is {"text": …} or
{"error": [class, message, param]}.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from adapters_store.adapter import Adapter
from adapters_store.errors import LorikeetError
from configs.settings import LoraSettings, ModelSettings
from deployments.engine.environment import cpu_environment, engine_environment
from deployments.messages import ChatCall
from tests.parts import KeptParts

AT_ONCE = 6
LAG_SECONDS = 0.02  # several steps of a model this small
ASKED_NAME = "ask/"  # adapters are asked for by a name that is not their version's, so that an echo of the wrong one shows
ADAPTER = Adapter("short", "path", "5" * 64, "tiny", 8, (), 0.0, "test")

Answers = dict[str, Any]


async def answer_all(model_folder: Path, adapter_folder: Path, cases: list[Mapping[str, Any]]) -> list[Answers]:
    from deployments.engine.vllm import VllmEngine

    model = ModelSettings(
        id="tiny",
        source=str(model_folder),
        engine={
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 512,
            "max_num_seqs": 32,
            "max_num_batched_tokens": 512,
            "tool_call_parser": "hermes",  # a parser must change nothing for requests without tools
            "enable_auto_tool_choice": True,
        },
        lora=LoraSettings(max_loras=2, max_cpu_loras=4, max_rank=8),
    )
    engine = await VllmEngine.start(model, model_folder)
    try:
        await engine.load_adapter(ADAPTER.exact_name, 1, str(adapter_folder))
        turns = asyncio.Semaphore(AT_ONCE)

        async def in_turn(case: Mapping[str, Any]) -> Answers:
            async with turns:
                return await _ask_every_way(engine, case, str(adapter_folder))

        return await asyncio.gather(*(in_turn(case) for case in cases))
    finally:
        engine.stop()


async def _ask_every_way(engine: Any, case: Mapping[str, Any], adapter_path: str) -> Answers:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.lora.request import LoRARequest

    from deployments.engine.errors import from_exception
    from deployments.engine.plain import is_plain

    adapter = ADAPTER if case["adapter"] else None
    lora = LoRARequest(lora_name=ADAPTER.exact_name, lora_int_id=1, lora_path=adapter_path) if adapter else None

    async def ask(chat: Any, to: Callable[[KeptParts], Any], fields: Mapping[str, Any]) -> Answers:
        body = json.dumps(fields).encode()
        model = f"{ASKED_NAME}{'adapter' if adapter else 'base'}"
        call = ChatCall(uuid.uuid4().hex, b"0" * 16, "", model, adapter, body, bool(fields.get("stream")))
        kept = LaggingParts()
        try:
            await asyncio.wait_for(chat(call, ChatCompletionRequest.model_validate_json(body), lora, to(kept)), 120)
        except Exception as failure:
            error = failure if isinstance(failure, LorikeetError) else from_exception(failure, call.request_id)
            return {"id": call.request_id, "error": [type(error).__name__, error.message, error.param], "text": _text(kept.parts)}
        return {"id": call.request_id, "text": _text(kept.parts)}

    streamed = {**case["body"], "stream": True}
    plain = is_plain(ChatCompletionRequest.model_validate(streamed))
    unstreamed = {name: value for name, value in case["body"].items() if name not in ("stream", "stream_options")}
    full = partial(ask, engine._full.chat, lambda kept: kept.emit)
    asked = {"full": full(streamed), "full_whole": full(unstreamed)}
    if plain:
        short = partial(ask, engine._plain.chat, lambda kept: kept)
        asked |= {"short": short(streamed), "short_whole": short(unstreamed)}
    return {"is_plain": plain, **dict(zip(asked, await asyncio.gather(*asked.values()), strict=True))}


class LaggingParts(KeptParts):
    """Takes what is to come later a moment late, as a gateway that lags, so that the short path joins what came meanwhile."""

    def emit_later(self, make: Callable[[], bytes]) -> None:
        self.later.append(make)
        asyncio.get_running_loop().call_later(LAG_SECONDS, self.let_go)


def _text(parts: list[bytes]) -> str:
    return b"".join(parts).decode()


def main() -> None:
    os.environ |= {
        **engine_environment(),
        **cpu_environment(1),
        "TORCH_COMPILE_DISABLE": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    cases = json.load(sys.stdin)
    answers = asyncio.run(answer_all(Path(sys.argv[1]), Path(sys.argv[2]), cases))
    Path(sys.argv[3]).write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
