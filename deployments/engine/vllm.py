"""One vLLM engine: started from settings, asked for chats, told which adapters to hold.

Two ways lead through it. `full.py` is vLLM's own OpenAI layer and serves every field; `plain.py` is the short path for a plain text chat.
Both render the prompt and make the sampling parameters with vLLM's own code. vLLM's internals are used in this folder
alone, and `tests/system/test_vllm_contract.py` says which.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.lora.request import LoRARequest
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from adapters_store.errors import InternalError, InvalidRequest, LorikeetError, Unavailable
from adapters_store.own_settings import NOTHING_OWN, OwnSettings
from configs.settings import ModelSettings
from deployments.engine import errors, load
from deployments.engine.adapters import UsedAdapter
from deployments.engine.full import FullChat
from deployments.engine.plain import PlainChat, is_plain
from deployments.engine.read_orders import ReadOrders
from deployments.engine.tap import Outlet
from deployments.messages import ChatCall
from deployments.scaling import EngineLoad

logger = logging.getLogger(__name__)

_LOAD_TIMEOUT_SECONDS = 120.0


class VllmEngine:
    """A running vLLM engine and the two paths through it."""

    def __init__(self, engine: AsyncLLM, orders: ReadOrders, full: FullChat, plain: PlainChat | None) -> None:
        self._engine = engine
        self._orders = orders
        self._told: set[asyncio.Task[Any]] = set()  # what the engine was told and has not done yet
        self._full = full
        self._plain = plain

    @classmethod
    async def start(cls, model: ModelSettings, folder: Path) -> VllmEngine:
        """Load the weights in `folder` and start the engine's process; minutes for a large model.

        Raises InvalidRequest when `engine` names an argument that vLLM does not have.
        """
        arguments = engine_arguments(model, folder)
        engine_args = AsyncEngineArgs.from_cli_args(arguments)
        config = engine_args.create_engine_config(usage_context=UsageContext.ENGINE_CONTEXT)
        engine = AsyncLLM.from_vllm_config(
            vllm_config=config,
            usage_context=UsageContext.ENGINE_CONTEXT,
            enable_log_requests=False,
            disable_log_stats=engine_args.disable_log_stats,
        )
        full = await FullChat.build(engine, arguments, model.id)
        reasoning = arguments.structured_outputs_config.reasoning_parser
        plain = None if reasoning else PlainChat(engine, full.renderer, full.default_sampling_params, model.id, parses=full.parses)
        with tempfile.TemporaryDirectory(prefix="lorikeet-") as sockets:
            orders = await ReadOrders.connect(await engine.collective_rpc("lorikeet_take_orders", args=(sockets,)))
        return cls(engine, orders, full, plain)

    async def chat(self, call: ChatCall, used: UsedAdapter | None, outlet: Outlet) -> None:
        """Answer one chat, handing each part of the answer to `outlet` as it comes; returns after the last.

        Raises InvalidRequest for what vLLM refuses, Overloaded, Unavailable, InternalError. Cancelling it aborts the engine's request.
        """
        try:
            request = _request(call.body, used.own if used else NOTHING_OWN)
            lora = LoRARequest(lora_name=used.name, lora_int_id=used.number, lora_path=used.path) if used else None
            if self._plain is not None and is_plain(request):
                await self._plain.chat(call, request, lora, outlet)
            else:
                await self._full.chat(call, request, lora, outlet.emit)
        except LorikeetError:
            raise
        except Exception as error:
            raise errors.from_exception(error, call.request_id) from error

    async def load_adapter(self, name: str, number: int, path: str) -> None:
        """Read an adapter's folder into the engine's memory, beside the steps of what runs (`worker.py`).

        When it returns, the engine has been told to enter it: a request that is submitted from then on finds it there. Raises Unavailable
        when it is not read in time, or the engine has stopped.
        """
        try:
            async with asyncio.timeout(_LOAD_TIMEOUT_SECONDS):
                whole = await self._orders.read(name, number, path)
                entering = self._tell("lorikeet_enter_adapter", name, number)
                if not whole:
                    await entering  # raises what reading it raised
            await asyncio.sleep(0)  # it is on its way now; its answer only comes when the running step has ended
        except TimeoutError as error:
            self._tell("lorikeet_forget_adapter", name, number)
            raise Unavailable(f"loading {name} took longer than {_LOAD_TIMEOUT_SECONDS:.0f} s: try again") from error
        except (EngineDeadError, ConnectionResetError) as error:
            raise Unavailable(errors.ENGINE_STOPPED) from error
        except Exception as error:
            # Uploads are validated against this base: what vLLM still refuses is our fault, not the request's.
            self._tell("lorikeet_forget_adapter", name, number)  # another worker may have entered it
            logger.exception("adapter_refused_by_engine", extra={"adapter": name})
            raise InternalError(f"{name} could not be loaded into the engine") from error

    def _tell(self, method: str, name: str, number: int) -> asyncio.Task[Any]:
        """Have the engine's loop do something about an adapter. Nobody has to wait for it: one that hangs, or died, does not answer."""
        telling = asyncio.create_task(self._engine.collective_rpc(method, args=(number,)))
        self._told.add(telling)
        telling.add_done_callback(functools.partial(self._done, method, name))
        return telling

    def _done(self, method: str, name: str, telling: asyncio.Task[Any]) -> None:
        self._told.discard(telling)
        if not telling.cancelled() and (error := telling.exception()) is not None and not isinstance(error, EngineDeadError):
            # Requests are right all the same: what is not entered vLLM reads itself, from the same folder.
            logger.warning("adapter_order_failed", extra={"adapter": name, "order": method, "error": str(error)})

    async def unload_adapter(self, name: str, number: int) -> None:
        await self._engine.remove_lora(number)

    async def adaptable_modules(self) -> tuple[str, ...] | None:
        """Names of the modules (`q_proj`, …) that this engine can adapt; None where it has no say (the benchmarks' null worker)."""
        answers = await self._engine.collective_rpc("lorikeet_adaptable_modules")
        return tuple(sorted({name for answer in answers for name in answer})) or None

    async def load(self) -> EngineLoad:
        """What the engine feels now, as its own process says."""
        running, waiting, kv_cache_use = await self._engine.engine_core.call_utility_async(load.METHOD)
        return EngineLoad(running, waiting, kv_cache_use)

    @property
    def running(self) -> int:
        """Requests the engine has not finished."""
        return int(self._engine.get_num_unfinished_requests())

    async def check(self) -> None:
        """Raises Unavailable once the engine's process has died."""
        if self._engine.errored or self._orders.lost:
            raise Unavailable(errors.ENGINE_STOPPED)

    def stop(self) -> None:
        """End the engine's process. Blocks for a second at most: what runs on it was drained, or is lost."""
        self._orders.close()
        self._engine.shutdown(timeout=1.0)


def _request(body: bytes, own: OwnSettings) -> ChatCompletionRequest:
    """A request as vLLM reads it, with what its adapter brings of its own."""
    if not own.changes_requests:
        return ChatCompletionRequest.model_validate_json(body)
    return ChatCompletionRequest.model_validate(own.applied(json.loads(body)))


def engine_arguments(model: ModelSettings, folder: Path) -> Namespace:
    """vLLM's own arguments with their defaults, overlaid with Lorikeet's and then the model's `engine` options."""
    arguments: Namespace = make_arg_parser(FlexibleArgumentParser()).parse_args([])  # type: ignore[no-untyped-call]
    lora, resources = model.lora, model.resources
    ours: dict[str, Any] = {
        "model": str(folder),
        "served_model_name": [model.id],
        "enable_lora": True,
        "max_loras": lora.max_loras,
        "max_cpu_loras": lora.max_cpu_loras,
        "max_lora_rank": lora.max_rank,
        "tensor_parallel_size": resources.tensor_parallel,
        # The contract's defaults (temperature 1, top_p 1) are the same for every model, so a model's own are not read.
        "generation_config": "vllm",
        "enable_log_requests": False,  # prompts are never logged
        "disable_log_stats": True,  # vLLM would count them for every step, for its own server's /metrics, which does not run here
        "worker_extension_cls": "deployments.engine.worker.LoraModules",
        "distributed_executor_backend": "ray" if resources.tensor_parallel > 1 else None,
    }
    for key, value in {**ours, **model.engine}.items():
        if not hasattr(arguments, key):
            raise InvalidRequest(f"models.{model.id}.engine.{key} is not an argument of vLLM's: see `engine` in docs/configuration.md")
        setattr(arguments, key, value)
    return arguments
