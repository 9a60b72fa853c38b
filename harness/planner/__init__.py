"""gefen-plan: the memory of training a model under an optimizer, before anything is allocated."""
