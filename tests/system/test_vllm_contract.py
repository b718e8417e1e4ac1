"""What deployments/engine uses of vLLM beyond its documented API: an upgrade that moves or changes any of it fails here, by name.

No engine is started. The places that rely on each are named beside it.
"""

from __future__ import annotations

import ast
import asyncio
import dataclasses
import importlib
import inspect
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import vllm
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.chat_utils import load_chat_template
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve.engine.protocol import ErrorInfo, ErrorResponse
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.entrypoints.serve.utils.api_utils import get_max_tokens
from vllm.exceptions import VLLMValidationError
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.request import LoRARequest
from vllm.renderers import BaseRenderer
from vllm.renderers.inputs.preprocess import extract_prompt_components, extract_prompt_len
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreRequestType, FinishReason
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core import EngineCore, EngineCoreProc
from vllm.v1.engine.core_client import AsyncMPClient
from vllm.v1.engine.detokenizer import BaseIncrementalDetokenizer, IncrementalDetokenizer
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector, RequestState
from vllm.v1.serial_utils import MsgpackEncoder

from configs.settings import ModelSettings
from deployments.api.schemas import ChatRequest
from deployments.engine import load
from deployments.engine.tap import Tap
from tests.system.stack import TINY

SIGNATURES: dict[str, tuple[Callable[..., Any], list[str], list[str]]] = {
    # what is called, the positional arguments it is called with (self included), the keywords
    "vllm.py: AsyncLLM.from_vllm_config": (
        AsyncLLM.from_vllm_config, [], ["vllm_config", "usage_context", "enable_log_requests", "disable_log_stats"]
    ),
    "vllm.py: AsyncLLM.remove_lora": (AsyncLLM.remove_lora, ["self", "lora_id"], []),
    "vllm.py: AsyncLLM.collective_rpc": (AsyncLLM.collective_rpc, ["self", "method"], ["args"]),
    "vllm.py: AsyncLLM.shutdown": (AsyncLLM.shutdown, ["self"], []),
    "vllm.py: LoRARequest": (LoRARequest, [], ["lora_name", "lora_int_id", "lora_path"]),
    "plain.py: AsyncLLM.check_admission": (AsyncLLM.check_admission, ["self"], ["request_id"]),
    "plain.py: OutputProcessor.add_request": (
        OutputProcessor.add_request, ["self", "request", "prompt", "parent_req", "request_index", "queue"], []
    ),
    "plain.py: AsyncMPClient.add_request_async": (AsyncMPClient.add_request_async, ["self", "request"], []),
    "tap.py: BaseIncrementalDetokenizer.get_next_output_text": (
        BaseIncrementalDetokenizer.get_next_output_text, ["self", "finished", "delta"], []
    ),
    "tap.py: IncrementalDetokenizer.num_output_tokens": (IncrementalDetokenizer.num_output_tokens, ["self"], []),
    "plain.py: AsyncLLM._run_output_handler": (AsyncLLM._run_output_handler, ["self"], []),
    "plain.py: AsyncLLM.abort": (AsyncLLM.abort, ["self", "request_id"], ["internal"]),
    "plain.py: AsyncLLM.get_supported_tasks": (AsyncLLM.get_supported_tasks, ["self"], []),
    "plain.py: InputProcessor.process_inputs": (
        InputProcessor.process_inputs, ["self", "request_id", "prompt", "params"], ["supported_tasks", "lora_request"]
    ),
    "plain.py: InputProcessor.assign_request_id": (InputProcessor.assign_request_id, ["request"], []),
    "tap.py: RequestOutputCollector": (RequestOutputCollector, ["output_kind", "request_id"], []),
    "tap.py: RequestOutputCollector.put": (RequestOutputCollector.put, ["self", "output"], []),
    "plain.py: get_max_tokens": (
        get_max_tokens, ["max_model_len", "max_tokens", "input_length", "default_sampling_params"], ["truncate_prompt_tokens"]
    ),
    "plain.py: extract_prompt_components": (extract_prompt_components, ["model_config", "prompt"], []),
    "plain.py: extract_prompt_len": (extract_prompt_len, ["model_config", "prompt"], []),
    "plain.py: ChatCompletionRequest.to_sampling_params": (
        ChatCompletionRequest.to_sampling_params, ["self", "max_tokens", "default_sampling_params"], []
    ),
    "rendering.py: OnlineRenderer.render_chat": (OnlineRenderer.render_chat, ["self", "request"], []),
    "rendering.py: BaseRenderer.render_chat": (
        BaseRenderer.render_chat, ["self", "conversations", "chat_params", "tok_params"], ["prompt_extras", "skip_mm_cache"]
    ),
    "full.py: OnlineRenderer": (
        OnlineRenderer, ["model_config", "renderer"],
        ["chat_template", "chat_template_content_format", "trust_request_chat_template", "exclude_tools_when_tool_choice_none",
         "enable_auto_tools", "tool_parser", "reasoning_parser", "default_chat_template_kwargs", "request_logger"],
    ),
    "full.py: OnlineRenderer.warmup": (OnlineRenderer.warmup, ["self"], []),
    "full.py: OpenAIServingChat": (
        OpenAIServingChat, ["engine_client", "models", "response_role"],
        ["online_renderer", "return_tokens_as_token_ids", "chat_template", "chat_template_content_format", "request_logger",
         "trust_request_chat_template", "exclude_tools_when_tool_choice_none", "enable_auto_tools", "tool_parser", "reasoning_parser",
         "default_chat_template_kwargs"],
    ),
    "full.py: OpenAIServingChat.create_chat_completion": (OpenAIServingChat.create_chat_completion, ["self", "request"], []),
    "full.py: OpenAIServingChat._check_model": (OpenAIServingChat._check_model, ["self", "request"], []),
    "full.py: OpenAIServingChat._maybe_get_adapters": (
        OpenAIServingChat._maybe_get_adapters, ["self", "request", "supports_default_mm_loras"], []
    ),
    "full.py: OpenAIServingModels": (OpenAIServingModels, ["engine_client", "base_model_paths"], []),
    "full.py: OpenAIServingModels.model_name": (OpenAIServingModels.model_name, ["self", "lora_request"], []),
    "full.py: BaseModelPath": (BaseModelPath, [], ["name", "model_path"]),
    "full.py: load_chat_template": (load_chat_template, ["chat_template"], []),
    "errors.py: create_error_response": (create_error_response, ["message"], []),
    "errors.py: VLLMValidationError": (VLLMValidationError, ["message"], ["parameter", "value"]),
}  # fmt: skip


@pytest.mark.parametrize("used", SIGNATURES)
def test_what_is_called_takes_what_it_is_called_with(used: str) -> None:
    function, positional, keywords = SIGNATURES[used]
    parameters = inspect.signature(function).parameters
    names = [p.name for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    assert names[: len(positional)] == positional
    takes_any = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    unknown = [name for name in keywords if name not in parameters and not takes_any]
    assert not unknown
    ours = {*positional, *keywords}
    required = [p.name for p in parameters.values() if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    assert set(required) <= ours, "an argument that we do not give became required"


def test_the_version_is_the_one_this_was_written_for() -> None:
    assert vllm.__version__.startswith("0.29.0"), "read deployments/engine again beside the new vLLM, then change this line"


def test_the_engine_tells_its_state_by_these_names() -> None:
    for name in ("errored", "dead_error"):  # vllm.py, plain.py
        assert isinstance(inspect.getattr_static(AsyncLLM, name), property)
    assert callable(AsyncLLM.get_num_unfinished_requests)
    source = inspect.getsource(AsyncLLM.__init__)
    for name in ("model_config", "input_processor", "renderer"):
        assert f"self.{name} = " in source, name


def test_a_chat_is_rendered_by_the_one_call_that_short_ones_have_made_in_the_loop() -> None:
    """rendering.py has `render_chat_async` do what `render_chat` does: the two take the same, and nothing else is awaited."""
    both = [inspect.signature(way).parameters for way in (BaseRenderer.render_chat, BaseRenderer.render_chat_async)]
    assert [*both[0].items()] == [*both[1].items()]
    tree = ast.parse(textwrap.dedent(inspect.getsource(OnlineRenderer.preprocess_chat)))
    assert [ast.unparse(node.value.func) for node in ast.walk(tree) if isinstance(node, ast.Await)] == ["renderer.render_chat_async"]  # type: ignore[attr-defined]


def test_add_request_goes_the_way_the_short_path_copies() -> None:
    """plain.py does by itself what AsyncLLM.add_request does for one choice; what that consists of has not changed."""
    source = inspect.getsource(AsyncLLM.add_request)
    for step in ("process_inputs(", "assign_request_id(", "_run_output_handler()", "RequestOutputCollector(", "_add_request("):
        assert step in source, step
    assert _steps(AsyncLLM._add_request) == [
        "if parent_req is None and (not self.output_processor.has_request(request.request_id)):\n"
        "    self.check_admission(request_id=request.request_id)",
        "self.output_processor.add_request(request, prompt, parent_req, index, queue)",
        "await self.engine_core.add_request_async(request)",
        "if self.log_requests:\n    logger.info('Added request %s.', request.request_id)",
    ]


def test_outputs_are_made_where_the_tap_stands_in() -> None:
    """tap.py: what it is called with, and what vLLM does with what it gives and with what ends all requests."""
    assert list(inspect.signature(Tap._take).parameters) == list(inspect.signature(RequestState.make_request_output).parameters)
    for caller in (OutputProcessor.process_outputs, OutputProcessor.abort_requests):
        assert "request_output := req_state.make_request_output(" in inspect.getsource(caller)
    assert "state.queue.put(e)" in inspect.getsource(OutputProcessor.propagate_error)
    source = inspect.getsource(RequestState.__init__)
    for name in ("detokenizer", "prompt_token_ids", "stream_interval"):
        assert f"self.{name} = " in source, name
    assert [str(reason) for reason in FinishReason] == ["stop", "length", "abort", "error", "repetition"]


def _steps(function: Callable[..., Any]) -> list[str]:
    """The statements of `function`, formatted alike."""
    definition = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef)
    return [ast.unparse(statement) for statement in definition.body]


def test_the_engines_process_tells_its_load() -> None:
    """load.py: a method more, called by its name, that asks the scheduler."""
    load.register()
    assert callable(getattr(EngineCore, load.METHOD))
    assert callable(AsyncMPClient.call_utility_async)
    assert "getattr(self, method_name)" in inspect.getsource(EngineCoreProc._handle_client_request)
    assert "load_general_plugins()" in inspect.getsource(EngineCore.__init__)
    for name in ("get_request_counts", "get_kv_cache_usage"):
        assert callable(getattr(Scheduler, name))


def test_errors_have_the_shape_that_is_read() -> None:
    response = create_error_response(VLLMValidationError("too long", parameter="max_tokens", value=9))
    assert isinstance(response, ErrorResponse)
    assert isinstance(response.error, ErrorInfo)
    assert (response.error.code, response.error.param) == (400, "max_tokens")
    assert response.error.message.startswith("too long")
    assert create_error_response(RuntimeError("x")).error.code == 500


def test_vllm_serves_every_field_that_is_let_through() -> None:
    ours = ChatRequest.model_fields.keys() - {"model", "user"}
    assert ours <= ChatCompletionRequest.model_fields.keys()


def test_the_arguments_that_are_set_exist() -> None:
    """vllm.py sets these on vLLM's own parser's result, and full.py reads some of them back."""
    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    wanted = {
        "model", "served_model_name", "enable_lora", "max_loras", "max_cpu_loras", "max_lora_rank", "tensor_parallel_size",
        "generation_config", "enable_log_requests", "distributed_executor_backend", "chat_template", "chat_template_content_format",
        "exclude_tools_when_tool_choice_none", "enable_auto_tool_choice", "tool_call_parser", "default_chat_template_kwargs",
        "return_tokens_as_token_ids", "structured_outputs_config", "dtype", "max_model_len", "max_num_seqs", "enforce_eager",
    }  # fmt: skip
    assert {name for name in wanted if not hasattr(arguments, name)} == set()
    assert hasattr(arguments.structured_outputs_config, "reasoning_parser")
    assert not AsyncEngineArgs.from_cli_args(arguments).enable_lora
    from deployments.engine.vllm import engine_arguments

    ours = engine_arguments(ModelSettings(id=TINY, source="/nowhere", engine={"max_model_len": 64}), folder=__file__)  # type: ignore[arg-type]
    assert (ours.enable_lora, ours.max_loras, ours.max_model_len, ours.generation_config) == (True, 4, 64, "vllm")


def test_peft_helper_honours_just_the_fields_that_validation_lets_differ() -> None:
    """adapters_store/peft_config.py: what vLLM does not read is refused or harmless, and what it reads is checked."""
    read = {field.name for field in dataclasses.fields(PEFTHelper) if not field.name.startswith("vllm_")}
    assert read == {"r", "lora_alpha", "target_modules", "bias", "modules_to_save", "use_rslora", "use_dora"}
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "unknown": 1}
    assert PEFTHelper.from_dict(config).vllm_lora_scaling_factor == 2.0
    assert PEFTHelper.from_dict({**config, "use_rslora": True}).vllm_lora_scaling_factor == 4.0


def test_the_cpu_kernels_that_the_remedy_wraps_are_where_it_looks() -> None:
    """cpu_lora.py: the names in both modules, and the order of the first four arguments."""
    ops = importlib.import_module("vllm.lora.ops.torch_ops.lora_ops")
    wrapper = importlib.import_module("vllm.lora.punica_wrapper.punica_cpu")
    for name in ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice"):
        assert hasattr(wrapper, name)
        kernel = inspect.unwrap(getattr(ops, name))
        assert next(iter(inspect.signature(kernel).parameters)) == "inputs"
        assert list(inspect.signature(kernel).parameters)[2:4] == ["output_tensor", "lora_indices_tensor"]


def test_workers_take_our_class_and_tell_their_modules() -> None:
    """worker.py: vLLM mixes the class in by its name, and the LoRA manager is where it looks."""
    assert "worker_extension_cls" in {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    source = inspect.getsource(importlib.import_module("vllm.lora.model_manager").LoRAModelManager.__init__)
    for name in ("supported_lora_modules", "packed_modules_mapping"):
        assert f"self.{name}" in source, name
    assert "_adapter_manager = " in inspect.getsource(importlib.import_module("vllm.lora.worker_manager").WorkerLoRAManager)
    assert "self.lora_manager = " in inspect.getsource(importlib.import_module("vllm.v1.worker.lora_model_runner_mixin"))


def test_adapters_are_entered_as_vllm_enters_them() -> None:
    """worker.py does in two parts what vLLM's add_adapter does in one: reading and packing in a thread, entering between steps."""
    manager = importlib.import_module("vllm.lora.model_manager").LRUCacheLoRAModelManager
    entering = inspect.getsource(manager._add_adapter).splitlines()[1:]
    assert [line.strip() for line in entering] == [
        "self._create_merged_loras_inplace(lora)",
        "self._registered_adapters[lora.id] = lora",
    ]
    worker = importlib.import_module("vllm.lora.worker_manager").LRUCacheWorkerLoRAManager
    adding = inspect.getsource(worker.add_adapter)
    for step in (
        "lora = self._load_adapter(lora_request)",
        "if len(self._adapter_manager) + 1 > self._adapter_manager.capacity:",
        "self._adapter_manager.remove_oldest_adapter()",
        "self._adapter_manager.activate_adapter(lora_request.lora_int_id)",  # for one that is entered already too: the first step does it
    ):
        assert step in adding, step


async def test_what_the_engine_is_told_leaves_in_the_order_in_which_it_was_told() -> None:
    """vllm.py tells the engine to enter an adapter, and submits the request behind it without waiting for an answer."""

    @dataclasses.dataclass
    class Request:
        client_index: int = 1

    class Socket:
        """Takes what it is given, as zmq's does while its queue has room."""

        def __init__(self) -> None:
            self.sent: list[bytes] = []

        def send_multipart(self, message: Sequence[bytes], **_: Any) -> asyncio.Future[None]:
            self.sent.append(bytes(message[1]))
            taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            taken.set_result(None)
            return taken

    class Client(AsyncMPClient):
        def __init__(self, socket: Socket) -> None:
            self.input_socket, self.utility_results, self.encoder = socket, {}, MsgpackEncoder()
            self.client_index, self.core_engine = 0, b"engine"

        def ensure_alive(self) -> None: ...

        def _ensure_output_queue_task(self) -> None: ...

    socket = Socket()
    client = Client(socket)
    told = [asyncio.create_task(client.collective_rpc_async("leave")), asyncio.create_task(client.collective_rpc_async("enter"))]
    await asyncio.sleep(0)
    await client.add_request_async(Request())
    assert socket.sent == [EngineCoreRequestType.UTILITY.value] * 2 + [EngineCoreRequestType.ADD.value]
    for task in told:
        task.cancel()


def test_the_cpu_runner_has_what_keeps_seeds() -> None:
    """cpu_seed.py: the two methods it wraps, and the two places it looks at."""
    runner = importlib.import_module("vllm.v1.worker.cpu_model_runner").CPUModelRunner
    assert callable(runner._sample)
    assert callable(runner._bookkeeping_sync)
    source = inspect.getsource(importlib.import_module("vllm.v1.worker.gpu_model_runner").GPUModelRunner)
    for name in ("self.discard_request_mask", "self.input_batch.generators"):
        assert name in source, name
