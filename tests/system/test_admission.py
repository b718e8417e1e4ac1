"""A version is tried on the real engine before it is served, and what an adapter brings of its own applies to its requests alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import load, save
from transformers import AutoTokenizer

from tests.system.stack import BASE, Stack
from tests.uploading import files_of, parts

PIRATE = Path(__file__).parents[2] / "examples" / "adapters" / "demo" / "pirate"
WEIGHTS = "adapter_model.safetensors"
QUESTION = "What is the capital of France?"
TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def http(stack: Stack) -> Iterator[httpx.Client]:
    with stack.client() as client:
        yield client


def scaled(factor_a: float, factor_b: float) -> Files:
    """The pirate's files with its weights multiplied."""
    files = files_of(PIRATE)
    factors = {"A": factor_a, "B": factor_b}
    tensors = {name: tensor.float() * factors[name[-len("A.weight")]] for name, tensor in load(files[WEIGHTS]).items()}
    return {**files, WEIGHTS: save(tensors)}


def push(http: httpx.Client, name: str, files: Files) -> httpx.Response:
    return http.post(f"adapters/{name}/versions", files=parts(files))


def chat(http: httpx.Client, model: str, **more: Any) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 24, **more}
    response = http.post("chat/completions", json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


@pytest.mark.parametrize(
    ("name", "factors", "reason"),
    [("faint", (1.0, 1e-30), "exactly like its base"), ("loud", (1e15, 1e15), "would overflow")],
)
def test_weights_that_change_nothing_or_far_too_much_are_rejected(
    http: httpx.Client, name: str, factors: tuple[float, float], reason: str
) -> None:
    refused = push(http, f"t-admission/{name}", scaled(*factors))
    assert refused.status_code == 400 and reason in refused.json()["error"]["message"], refused.text
    (version,) = http.get(f"adapters/t-admission/{name}").json()["rejected"]
    told = http.get(f"adapters/t-admission/{name}/versions/{version}").json()
    assert told["status"] == "rejected" and reason in told["reasons"][0]
    for model in (f"t-admission/{name}", f"t-admission/{name}@{version}"):
        body = {"model": model, "messages": [{"role": "user", "content": QUESTION}]}
        assert http.post("chat/completions", json=body).status_code == 404


def test_golden_prompts_decide(http: httpx.Client) -> None:
    files = files_of(PIRATE)
    good = b'golden: [{prompt: "What is the capital of France?", contains: "matey"}, {prompt: "Hello!", matches: "^A"}]'
    taken = push(http, "t-admission/golden", {**files, "lorikeet.yaml": good})
    assert (taken.status_code, taken.json()["status"]) == (201, "ready"), taken.text
    bad = b'golden: [{prompt: "What is the capital of France?", contains: "Bonjour"}]'
    refused = push(http, "t-admission/golden", {**files, "lorikeet.yaml": bad})
    assert refused.status_code == 400 and '"Bonjour"' in refused.json()["error"]["message"]
    assert chat(http, "t-admission/golden")["system_fingerprint"] == taken.json()["id"], "what was served stays"


def test_an_adapters_own_template_and_stops_apply_to_its_requests_alone(http: httpx.Client, stack: Stack) -> None:
    own = {"chat_template.jinja": TEMPLATE.encode(), "lorikeet.yaml": b'stop: [" matey"]'}
    assert push(http, "t-admission/own", {**files_of(PIRATE), **own}).status_code == 201
    tokenizer = AutoTokenizer.from_pretrained(stack.base_folder)
    rendered = f"[user] {QUESTION}\n[assistant] "
    expected = len(tokenizer(rendered)["input_ids"])
    before = chat(http, BASE)
    for more in ({}, {"logprobs": True}):  # the short path, and vLLM's own
        answer = chat(http, "t-admission/own", **more)
        assert answer["usage"]["prompt_tokens"] == expected != before["usage"]["prompt_tokens"]
        assert " matey" not in answer["choices"][0]["message"]["content"]
    assert chat(http, BASE)["choices"][0]["message"] == before["choices"][0]["message"]
    stopped = chat(http, "t-admission/own", stop=["rr"], max_tokens=64)
    assert "rr" not in stopped["choices"][0]["message"]["content"]


def test_defaults_apply_where_the_request_says_nothing(http: httpx.Client) -> None:
    files = {**files_of(PIRATE), "lorikeet.yaml": b"defaults: {temperature: 0}"}
    assert push(http, "t-admission/cool", files).status_code == 201
    body = {"model": "t-admission/cool", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 16}
    answers = {http.post("chat/completions", json=body).json()["choices"][0]["message"]["content"] for _ in range(3)}
    assert answers == {chat(http, "demo/pirate", max_tokens=16)["choices"][0]["message"]["content"]}


def test_a_client_brings_no_template(http: httpx.Client) -> None:
    body = {"model": BASE, "messages": [{"role": "user", "content": "hi"}]}
    for more in ({"chat_template": TEMPLATE}, {"chat_template_kwargs": {"chat_template": TEMPLATE}}):
        refused = http.post("chat/completions", json={**body, **more})
        assert refused.status_code == 400 and "chat_template" in refused.json()["error"]["message"]
