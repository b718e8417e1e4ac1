"""Short chats become the same prompts in the loop as longer ones do in vLLM's threads."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.renderers import renderer_from_config
from vllm.renderers.online_renderer import OnlineRenderer

from adapters_store.errors import InvalidRequest
from deployments.engine.rendering import SHORT_BYTES, TURN, TextRenderer

CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be naïve 🦜"}, {"role": "user", "content": "And now?"}, {"role": "assistant", "content": ""}],
    [{"role": "user", "content": [{"type": "text", "text": "in"}, {"type": "text", "text": "parts"}]}],
    [{"role": "user", "content": "more than is short " * 40}],
]


@pytest.fixture(scope="module")
def online(embedded_model: Path) -> OnlineRenderer:
    config = AsyncEngineArgs(model=str(embedded_model), dtype="float32", enforce_eager=True).create_engine_config()
    return OnlineRenderer(
        config.model_config,
        renderer_from_config(config),
        chat_template=None,
        chat_template_content_format="auto",
        trust_request_chat_template=True,
        request_logger=None,
    )


def asked(messages: list[dict[str, Any]], **fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest(messages=messages, model="m", **fields)


@pytest.mark.parametrize("messages", CHATS)
@pytest.mark.parametrize("fields", [{}, {"chat_template_kwargs": {"bos_token": "x"}}, {"truncate_prompt_tokens": 2}])
async def test_a_prompt_is_the_same_in_the_loop(online: OnlineRenderer, messages: list[dict[str, Any]], fields: dict[str, Any]) -> None:
    renderer = TextRenderer(online)
    short = await renderer.render(asked(messages, **fields), SHORT_BYTES)
    long = await renderer.render(asked(messages, **fields), SHORT_BYTES + 1)
    assert short["prompt_token_ids"] == long["prompt_token_ids"]  # type: ignore[typeddict-item]
    assert {**short, "arrival_time": 0} == {**long, "arrival_time": 0}


@pytest.mark.parametrize(("size_bytes", "own_template", "in_loop"), [(10, False, True), (SHORT_BYTES + 1, False, False), (10, True, False)])
async def test_only_what_is_short_keeps_the_loop(
    online: OnlineRenderer, monkeypatch: pytest.MonkeyPatch, size_bytes: int, own_template: bool, in_loop: bool
) -> None:
    """An adapter's own template may take any time."""
    threads = watched(online, monkeypatch)
    request = asked(CHATS[0], **({"chat_template": "{{ messages[0].content }}"} if own_template else {}))
    await TextRenderer(online).render(request, size_bytes)
    assert len(threads) == 2, "template and tokenizer"
    assert all((thread == threading.get_ident()) == in_loop for thread in threads)


async def test_of_those_that_come_together_a_few_keep_the_loop(online: OnlineRenderer, monkeypatch: pytest.MonkeyPatch) -> None:
    threads, renderer = watched(online, monkeypatch), TextRenderer(online)
    for _ in range(2):
        threads.clear()
        await asyncio.gather(*(renderer.render(asked(CHATS[0]), 10) for _ in range(3 * TURN)))
        assert threads.count(threading.get_ident()) == 2 * TURN
        assert len(threads) == 2 * 3 * TURN


async def test_a_tokenizer_that_is_no_pool_is_left_to_the_threads(online: OnlineRenderer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.engine.rendering.ThreadSafeHFTokenizerMixin", type("AnotherMixin", (), {}))
    threads = watched(online, monkeypatch)
    await TextRenderer(online).render(asked(CHATS[0]), 10)
    assert threads and threading.get_ident() not in threads


def watched(online: OnlineRenderer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The threads that template and tokenizer are called in from now on."""
    threads: list[int] = []
    pool = type(online.renderer.get_tokenizer())
    for name in ("__call__", "apply_chat_template"):
        call = getattr(pool, name)

        def called(self: Any, *args: Any, call: Any = call, **kwargs: Any) -> Any:
            threads.append(threading.get_ident())
            return call(self, *args, **kwargs)

        monkeypatch.setattr(pool, name, called)
    return threads


async def test_what_vllm_refuses_is_refused(online: OnlineRenderer) -> None:
    request = asked(CHATS[0], tool_choice="auto", tools=[{"type": "function", "function": {"name": "f"}}])
    for size_bytes in (10, SHORT_BYTES + 1):
        with pytest.raises(InvalidRequest, match="tool choice"):
            await TextRenderer(online).render(request, size_bytes)
