"""A CUDA device as a platform. All but graphs, events and pinned memory also runs on a CPU."""
