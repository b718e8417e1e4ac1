"""Inside a replica: vLLM and what surrounds it. The only place that imports vllm."""
