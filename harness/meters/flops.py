"""Floating-point operations of one training step of a decoder, in closed form.

Source: Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways", arXiv 2204.02311,
appendix B: 6 N + 12 L H Q T for each token, forward and backward, for N parameters, L layers, H
heads of size Q and sequences of T tokens. A multiplication and an addition count one each.
"""

from torch import nn


def model_flops_per_step(
    matrix_parameters: int, layers: int, attention_width: int, seq_len: int, tokens: int
) -> int:
    """FLOPs of forward and backward passes over `tokens` tokens in sequences of `seq_len`.

    Args:
        matrix_parameters: elements of the weights that tokens are multiplied with
            (`matrix_parameters`); 6 for each token: 2 forward, 4 backward.
        layers: attention layers.
        attention_width: query heads times their size; scores and their use on the values take
            12 T a layer for each of them, the triangle above the diagonal included, as in the
            source, although causal kernels may skip it.
        seq_len: tokens of a sequence (T).
        tokens: tokens of the step, all micro-batches.

    Norms, activations and the softmax are left out, as in the source; so is recomputation.
    """
    return tokens * (6 * matrix_parameters + 12 * layers * attention_width * seq_len)


def matrix_parameters(model: nn.Module) -> int:
    """Elements of the matrices of `model` that one of its tokens is multiplied with.

    A table that is only looked up (positions, input embeddings that are not the head's) costs no
    multiplication and is left out; tied embeddings count once, as the head. Of stacked experts
    (experts, out, in) a token meets `num_experts_per_tok` in `num_local_experts`; other tensors of
    three dimensions are learned positions. One of four is the projection of patches of an image.
    """
    config = getattr(model, "config", None)
    chosen = getattr(config, "num_experts_per_tok", None) or 1
    experts = getattr(config, "num_local_experts", None) or 1
    sizes: dict[int, int] = {}
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            continue
        for parameter in module.parameters(recurse=False):
            if parameter.ndim in (2, 4):
                sizes[id(parameter)] = parameter.numel()
            elif parameter.ndim == 3 and experts > 1:
                sizes[id(parameter)] = parameter.numel() * chosen // experts
    return sum(sizes.values())


def flops_of(model: nn.Module, seq_len: int, tokens: int) -> int | None:
    """`model_flops_per_step` of a decoder of transformers; None where its config lacks a size."""
    config = getattr(model, "config", None)
    layers = getattr(config, "num_hidden_layers", None)
    heads = getattr(config, "num_attention_heads", None)
    hidden = getattr(config, "hidden_size", None)
    if not layers or not heads or not hidden:
        return None
    width = heads * (getattr(config, "head_dim", None) or hidden // heads)
    return model_flops_per_step(matrix_parameters(model), layers, width, seq_len, tokens)
