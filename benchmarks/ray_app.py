"""ray.serve.llm's own process: starts Ray and an OpenAI app from a JSON file, and serves until Ctrl-C.

    python -m benchmarks.ray_app CONFIG.json      {"port": …, "llm_config": {…}}

What it is to be (defaults or direct streaming) is in its environment, which Serve reads when it is imported.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

LOGICAL_CPUS = 8  # its ingress asks for more than the machine has, and would wait for ever
OBJECT_STORE_BYTES = 256 << 20
RUNNING = "benchmark-app-is-running"  # printed once the application answers


def main() -> None:
    asked = json.loads(Path(sys.argv[1]).read_text())
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    import ray

    ray.init("local", num_cpus=LOGICAL_CPUS, include_dashboard=False, log_to_driver=False, object_store_memory=OBJECT_STORE_BYTES)
    from ray import serve
    from ray.serve.llm import LLMConfig, build_openai_app

    try:
        serve.start(http_options={"host": "127.0.0.1", "port": asked["port"]})
        serve.run(build_openai_app({"llm_configs": [LLMConfig(**asked["llm_config"])]}), blocking=False)
        print(RUNNING, flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
    except KeyboardInterrupt:
        pass
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


if __name__ == "__main__":
    main()
