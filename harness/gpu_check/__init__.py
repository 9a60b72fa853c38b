"""The GPU check: what needs a CUDA device, measured in a few minutes with few packages."""
