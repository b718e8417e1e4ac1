"""What runs inside Ray Serve: the gateway that speaks HTTP, and the replicas that hold an engine each."""
