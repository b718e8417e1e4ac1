"""The load generator's own process: vLLM's `bench serve`, imported once and run for every line that comes in.

`vllm bench serve` as a command does not start in the CPU build (it looks for a package called vllm), and importing it takes longer than
most runs last. So this process calls the same entry point with the same arguments: one JSON list of them a line on standard input, one
JSON object a line on standard output when it is through: the seconds that the load ran, by the clock that all processes share.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what vLLM prints goes to the log
    from vllm.benchmarks import serve
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()  # type: ignore[no-untyped-call]
    serve.add_cli_args(parser)
    replies.write("{}\n")
    for line in sys.stdin:
        reply: dict[str, Any] = {}
        began_cpu = time.process_time()
        try:
            serve.main(parser.parse_args(json.loads(line)))
        except (Exception, SystemExit) as error:
            reply["error"] = f"{type(error).__name__}: {error}"
        reply["load_cpu_seconds"] = time.process_time() - began_cpu
        replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main()
