"""Lorikeet beside bare vLLM and ray.serve.llm, under the same load: see docs/performance.md. `python -m benchmarks.run --help`."""
