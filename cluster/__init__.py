"""What runs outside Ray Serve: the `lorikeet` command, starting and stopping the cluster, the client, the embedded model."""
