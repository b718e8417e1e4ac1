"""What `lorikeet up` prints when it is ready: the address, the key, and requests that work as pasted."""

from __future__ import annotations

import json
import shlex

from configs.settings import Settings

QUESTION = "What is the capital of France?"


def welcome(settings: Settings, url: str, key: str, demos: tuple[str, ...], logs: str) -> str:
    """The text. `demos` are the demo adapters that were published, e.g. demo/pirate."""
    base = settings.models[0].id
    adapter = next((name for name in demos if name.endswith("/pirate")), demos[0] if demos else None)
    parts = [
        "",
        "Lorikeet is up.",
        f"  base URL  {url}/api/v1",
        f"  API key   {key}",
        f"  models    {', '.join((*(model.id for model in settings.models), *demos))}",
        f"  logs      {logs}",
        "",
        f"Ask the base model:\n\n{_curl(url, key, base)}",
    ]
    if adapter:
        parts.append(f"\nAsk the adapter {adapter}:\n\n{_curl(url, key, adapter)}")
    parts.append(f"\nStream an answer:\n\n{_curl(url, key, adapter or base, stream=True)}")
    parts.append("\nCtrl-C stops everything.")
    return "\n".join(parts)


def _curl(url: str, key: str, model: str, *, stream: bool = False) -> str:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 64,
        "temperature": 0,
        **({"stream": True} if stream else {}),
    }
    return (
        f"curl {'-N ' if stream else ''}-s {url}/api/v1/chat/completions \\\n"
        f"  -H {shlex.quote(f'Authorization: Bearer {key}')} -H 'Content-Type: application/json' \\\n"
        f"  -d {shlex.quote(json.dumps(body))}"
    )
