"""Placement of adapters over replicas on several nodes, beside Serve's multiplexing and chance: see docs/performance.md."""
