"""`lorikeet chat`: a conversation in the terminal, each answer shown as it is written."""

from __future__ import annotations

import sys

from cluster.client import ApiError, Client


def converse(client: Client, model: str, prompt: str | None, *, temperature: float, max_tokens: int) -> None:
    """Answer one prompt, or read questions from the terminal (or a pipe) until it ends. A refused question ends neither.

    Raises:
        ApiError: the one prompt was refused.
    """
    options = {"temperature": temperature, "max_tokens": max_tokens}
    if prompt is not None:
        _answer(client, model, [{"role": "user", "content": prompt}], options)
        return
    messages: list[dict[str, str]] = []
    while (question := _question()) is not None:
        if not question:
            continue
        asked = [*messages, {"role": "user", "content": question}]
        try:
            said = _answer(client, model, asked, options)
        except ApiError as error:
            if error.status == 0 or not sys.stdin.isatty():
                raise
            print(f"lorikeet: {error.message}", file=sys.stderr)
            continue
        messages = [*asked, {"role": "assistant", "content": said}]


def _question() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return None


def _answer(client: Client, model: str, messages: list[dict[str, str]], options: dict[str, float]) -> str:
    pieces = []
    for piece in client.chat(model, messages, **options):
        pieces.append(piece)
        print(piece, end="", flush=True)
    print(flush=True)
    return "".join(pieces)
