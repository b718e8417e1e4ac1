"""Short chats become the same prompts in the loop as longer ones do in vLLM's threads."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.renderers import renderer_from_config
from vllm.renderers.online_renderer import OnlineRenderer

from adapters_store.errors import InvalidRequest
from deployments.engine.rendering import SHORT_BYTES, TextRenderer

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
    threads: list[int] = []
    tokenizer = online.renderer.get_tokenizer()
    encode = type(tokenizer).__call__

    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        threads.append(threading.get_ident())
        return encode(self, *args, **kwargs)

    monkeypatch.setattr(type(tokenizer), "__call__", called)
    request = asked(CHATS[0], **({"chat_template": "{{ messages[0].content }}"} if own_template else {}))
    await TextRenderer(online).render(request, size_bytes)
    assert threads
    assert all((thread == threading.get_ident()) == in_loop for thread in threads)


async def test_what_vllm_refuses_is_refused(online: OnlineRenderer) -> None:
    request = asked(CHATS[0], tool_choice="auto", tools=[{"type": "function", "function": {"name": "f"}}])
    for size_bytes in (10, SHORT_BYTES + 1):
        with pytest.raises(InvalidRequest, match="tool choice"):
            await TextRenderer(online).render(request, size_bytes)
