"""Puts one case's load on one stack by `vllm bench serve` and says what came of it.

The requests are vLLM's random dataset, a new one each round and the same for every stack, asked of the base and the 16 adapters in
turn. For requests that are not streamed, `stream` is overridden in their body: the generator then counts answers, and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.cases import OUTPUT_TOKENS, PROMPT_TOKENS, Case
from benchmarks.processes import ROOT, spent
from benchmarks.stacks.stack import Stack

RUN_TIMEOUT_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class Measurement:
    """One case on one stack in one round. Times of a token are None where nothing is streamed."""

    workload: str
    stack: str
    case: str
    at_once: int
    round: int
    completed: int
    failed: int
    duration_seconds: float
    tokens_per_second: float
    requests_per_second: float
    cpu_seconds_per_1000_tokens: float
    load_cpu_seconds: float
    ttft_p50_ms: float | None = None
    ttft_p99_ms: float | None = None
    tpot_p50_ms: float | None = None
    tpot_p99_ms: float | None = None


class Load:
    """A running load generator."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self._folder = folder

    def warm_up(self, stack: Stack, *, is_new: bool) -> None:
        """Ask all models at once, those of a new stack once alone before, so that nothing is new when measured. Raises RuntimeError."""
        for model in stack.models if is_new else ():
            self._ask_once(stack, model)
        names = len(stack.models)
        self._bench(stack, Case("warm_up", names, 2 * names), seed=0)

    def measure(self, stack: Stack, case: Case, round_number: int) -> Measurement:
        before = stack.processes.cpu_seconds()
        found = self._bench(stack, case, seed=round_number)
        cpu_seconds = spent(before, stack.processes.cpu_seconds())
        tokens = found["completed"] * OUTPUT_TOKENS
        if case.stream and found["total_output_tokens"] != tokens:
            raise RuntimeError(f"{stack.name}, {case.name}: {found['total_output_tokens']} tokens came, {tokens} were asked for")
        times = {}
        if case.stream:
            times = {f"{name}_p{p}_ms": found[f"p{p}_{name}_ms"] for name in ("ttft", "tpot") for p in (50, 99)}
        return Measurement(
            workload=stack.workload.name,
            stack=stack.name,
            case=case.name,
            at_once=case.at_once,
            round=round_number,
            completed=found["completed"],
            failed=found["failed"],
            duration_seconds=found["duration"],
            tokens_per_second=tokens / found["duration"],
            requests_per_second=found["completed"] / found["duration"],
            cpu_seconds_per_1000_tokens=1e3 * cpu_seconds / max(tokens, 1),
            load_cpu_seconds=found["load_cpu_seconds"],
            **times,
        )

    def _bench(self, stack: Stack, case: Case, seed: int) -> dict[str, Any]:
        result = self._folder / "result.json"
        result.unlink(missing_ok=True)
        body: dict[str, Any] = {"temperature": 0.0}
        if not case.stream:
            body |= {"stream": False, "stream_options": None}
        arguments = [
            *("--backend", "openai-chat", "--base-url", stack.url, "--endpoint", "/v1/chat/completions"),
            *("--model", stack.models[0], "--tokenizer", str(stack.workload.folder)),
            *("--lora-modules", *stack.models, "--lora-assignment", "round-robin"),
            *("--dataset-name", "random", "--random-input-len", str(PROMPT_TOKENS), "--random-output-len", str(OUTPUT_TOKENS)),
            *("--num-prompts", str(case.requests), "--max-concurrency", str(case.at_once), "--ignore-eos", "--seed", str(seed)),
            *("--extra-body", json.dumps(body), "--metric-percentiles", "50,99", "--ready-check-timeout-sec", "0", "--disable-tqdm"),
            *("--save-result", "--result-dir", str(result.parent), "--result-filename", result.name),
        ]
        if stack.headers:
            arguments += ["--header", *(f"{name}={value}" for name, value in stack.headers.items())]
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        reply = self.read()
        if "error" in reply or not result.is_file():
            stack.processes.require_alive()
            raise RuntimeError(f"{stack.name}, {case.name}: the load generator failed, {reply.get('error', 'it wrote no result')}")
        return {**json.loads(result.read_text()), **reply}

    def read(self) -> dict[str, Any]:
        """The process's next reply. Raises RuntimeError when it ends, or says nothing for RUN_TIMEOUT_SECONDS."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], RUN_TIMEOUT_SECONDS)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            raise RuntimeError(f"the load generator {'ended' if ready else 'hangs'}: see {self._folder / 'load.log'}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _ask_once(self, stack: Stack, model: str) -> None:
        """One answer that is not streamed, which must have all its tokens."""
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": OUTPUT_TOKENS, "ignore_eos": True}
        response = httpx.post(f"{stack.url}/v1/chat/completions", json=body, headers=stack.headers, timeout=120.0)
        if response.status_code != 200 or response.json()["usage"]["completion_tokens"] != OUTPUT_TOKENS:
            raise RuntimeError(f"{stack.name} answered a request for {model} with {response.status_code}: {response.text[:300]}")


@contextlib.contextmanager
def load_generator(folder: Path) -> Iterator[Load]:
    """Start the generator's process; its log is in `folder`."""
    with (folder / "load.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.load_process"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        load = Load(process, folder)
        load.read()  # it has imported vLLM
        yield load
    finally:
        process.kill()
        process.wait(10.0)
