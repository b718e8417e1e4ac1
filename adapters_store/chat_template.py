"""Whether a chat template from outside can be rendered: tried in a process of its own, with bounds on its time and memory.

For `own_settings.py`. A template is a program. The engine renders it in Jinja's sandbox, where it reaches nothing, but a sandbox does not
bound how long it computes: what is slow or huge here, over short and long conversations, is refused before it meets an engine.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from typing import Any

TIMEOUT_SECONDS = 5.0
MEMORY_BYTES = 1 << 30
MAX_RENDERED_CHARACTERS = 1 << 20
_PROGRAM = "import sys; sys.path[:] = {path!r}; from adapters_store import chat_template; chat_template.main()"
_LONG = 200  # messages of the longest conversation that is tried


def template_fault(raw: bytes) -> str | None:
    """Why a template cannot be used, or None. Blocks for the length of the trial."""
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return "is not UTF-8 text: save and upload it again."
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            [sys.executable, "-I", "-c", _PROGRAM.format(path=sys.path)],
            input=raw,
            capture_output=True,
            timeout=TIMEOUT_SECONDS,
            env={},
            check=False,
        )
        said: str | None = json.loads(done.stdout)["fault"]
    except subprocess.TimeoutExpired:
        return f"took more than {TIMEOUT_SECONDS:g} s to render: simplify it."
    except (ValueError, KeyError):
        return "could not be rendered within the memory that one may take: simplify it."
    return said


def main() -> None:
    """The process that tries the template on its standard input, and prints what is wrong with it as JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (int(TIMEOUT_SECONDS), int(TIMEOUT_SECONDS)))
    print(json.dumps({"fault": _fault(sys.stdin.buffer.read().decode())}))


def _fault(text: str) -> str | None:
    from jinja2 import TemplateError

    try:
        template = _environment().from_string(text)
        rendered = [template.render(messages=messages, **_GIVEN) for messages in _tried()]
    except TemplateError as error:
        return f"does not render ({(error.message or type(error).__name__)[:200]}): mend it, or leave it out."
    except Exception as error:
        return f"does not render ({type(error).__name__}): mend it, or leave it out."
    if any(len(prompt) > MAX_RENDERED_CHARACTERS for prompt in rendered):
        return "makes prompts far longer than their messages: mend it."
    if _WORD not in rendered[0]:
        return "leaves out what the user says: mend it."
    return None


_WORD = "lorikeet-asks"
_GIVEN = {"add_generation_prompt": True, "bos_token": "<s>", "eos_token": "</s>"}


def _tried() -> list[list[dict[str, Any]]]:
    one = {"role": "user", "content": _WORD}
    return [[one], [one, {"role": "assistant", "content": "yes"}] * (_LONG // 2) + [one]]


def _environment() -> Any:
    """Jinja as transformers sets it up for chat templates (transformers/utils/chat_template_utils.py)."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 - Jinja's own way

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = lambda value, **_: json.dumps(value)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda _: "2026-01-01"
    return environment
