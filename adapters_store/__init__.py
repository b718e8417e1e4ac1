"""Adapters at rest: names, versions, the object store, a node's disk cache. Knows nothing of HTTP, Ray or vLLM."""
