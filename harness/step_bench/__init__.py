"""The parts of `gefen-step`: what is timed, on which tensors, in fresh processes."""
