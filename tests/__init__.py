"""The test suite: it mirrors the tree; tests/system runs the whole of it on real parts."""
