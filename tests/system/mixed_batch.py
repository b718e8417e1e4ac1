"""A process of its own for `test_right_weights.py`: vLLM as a replica starts it, without Serve, asked for the base and adapters at once.

    python -m tests.system.mixed_batch MODEL_FOLDER ANSWERS_FILE ADAPTER_FOLDER... < {"chats": [...], "shared": chat, "tokens": 32}

Every adapter has a slot of its own and all slots are full before the batch begins. Writes {"mixed": {name: [token ids of each chat]},
"shared": [{name: [token ids, prompt tokens found in the prefix cache]}, and again], "prefix_caching": bool}; names are "base", "0", "1"…
LORIKEET_WITHOUT_CPU_LORA_REMEDY=1 in the environment leaves the remedy out.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adapters_store.adapter import Adapter
from configs.settings import LoraSettings, ModelSettings
from deployments.engine.adapters import UsedAdapter
from deployments.engine.environment import cpu_environment, engine_environment
from deployments.messages import ChatCall
from tests.parts import KeptParts

BASE = "base"
TIMEOUT_SECONDS = 240.0
ENVIRONMENT = {
    **engine_environment(),
    **cpu_environment(1),
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}


async def answer_all(model_folder: Path, adapters: Sequence[Path], asked: Mapping[str, Any]) -> Mapping[str, Any]:
    from deployments.engine.vllm import VllmEngine

    model = ModelSettings(
        id="tiny",
        source=str(model_folder),
        engine={"dtype": "float32", "enforce_eager": True, "max_model_len": 1024, "max_num_seqs": 64},
        lora=LoraSettings(max_loras=len(adapters), max_cpu_loras=len(adapters), max_rank=8),
    )
    engine = await VllmEngine.start(model, model_folder)
    engine._full._serving.enable_prompt_tokens_details = True  # so that usage says what the prefix cache held
    names = {BASE: None, **{str(i): UsedAdapter(f"mixed/{i}@{i:064x}", i + 1, str(path), "gpu", 0.0) for i, path in enumerate(adapters)}}
    tokens = asked["tokens"]
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            for used in names.values():  # fill every slot
                await _ask(engine, used, asked["chats"][0], 1)
            batch = [(name, _ask(engine, used, chat, tokens)) for chat in asked["chats"] for name, used in names.items()]
            answers = await asyncio.gather(*(question for _, question in batch))
            mixed: dict[str, list[list[int]]] = {name: [] for name in names}
            for (name, _), (token_ids, _) in zip(batch, answers, strict=True):
                mixed[name].append(token_ids)
            shared = [{name: await _ask(engine, used, asked["shared"], tokens) for name, used in names.items()} for _ in range(2)]
        return {"mixed": mixed, "shared": shared, "prefix_caching": engine._engine.vllm_config.cache_config.enable_prefix_caching}
    finally:
        engine.stop()


async def _ask(engine: Any, used: UsedAdapter | None, chat: list[dict[str, str]], tokens: int) -> tuple[list[int], int]:
    """The greedy token ids, and how many tokens of the prompt the prefix cache held."""
    body = {"messages": chat, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    adapter = None
    if used is not None:
        owner, _, rest = used.name.partition("/")
        name, _, version = rest.partition("@")
        adapter = Adapter(owner, name, version, "tiny", 8, (), 0.0, "test")
    call = ChatCall(uuid.uuid4().hex, b"0" * 16, "", "asked", adapter, json.dumps(body).encode(), False)
    kept = KeptParts()
    await engine.chat(call, used, kept)
    answer = json.loads(b"".join(kept.parts))
    details = answer["usage"]["prompt_tokens_details"] or {}
    return answer["choices"][0]["token_ids"], details.get("cached_tokens") or 0


def main() -> None:
    os.environ |= ENVIRONMENT
    model_folder, answers_file, *adapters = map(Path, sys.argv[1:])
    answers = asyncio.run(answer_all(model_folder, adapters, json.load(sys.stdin)))
    answers_file.write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
