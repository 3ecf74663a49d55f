"""Parameter shapes of real networks, biases and normalisation parameters included."""

from collections.abc import Callable
from itertools import pairwise

Shape = tuple[int, ...]


def resnet50() -> list[Shape]:
    """He et al. (2016), ImageNet: 25.6 M in 161 tensors."""
    convs = [(64, 3, 7)]  # outputs, inputs, side; a batch norm behind each
    n_in = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            convs += [(width, n_in, 1), (width, width, 3), (4 * width, width, 1)]
            convs += [(4 * width, n_in, 1)] if block == 0 else []
            n_in = 4 * width
    shapes = [shape for o, i, k in convs for shape in ((o, i, k, k), (o,), (o,))]
    return [*shapes, (1000, 2048), (1000,)]


def llama(vocabulary: int, d: int, kv: int, hidden: int, layers: int) -> list[Shape]:
    """A decoder in Llama's layout: no biases, RMSNorm, gated MLP, untied embeddings."""
    layer = [(d, d), (kv, d), (kv, d), (d, d), (hidden, d), (hidden, d), (d, hidden), (d,), (d,)]
    return [(vocabulary, d), *(layers * layer), (d,), (vocabulary, d)]


D = 768
LN: list[Shape] = [(D,), (D,)]
VIT = [*LN, (3 * D, D), (3 * D,), (D, D), (D,), *LN, (4 * D, D), (4 * D,), (D, 4 * D), (D,)]
GPT2 = [*LN, (D, 3 * D), (3 * D,), (D, D), (D,), *LN, (D, 4 * D), (4 * D,), (4 * D, D), (D,)]
WIDTHS = (3, 64, 64, 128, 128, 256, 256, 512, 512, 512, 512)
MODELS: dict[str, Callable[[], list[Shape]]] = {
    # The paper's, for CIFAR-10: no biases, no BN parameters, one linear layer.
    "vgg13": lambda: [*((o, i, 3, 3) for i, o in pairwise(WIDTHS)), (10, 512)],
    "resnet50": resnet50,
    # Dosovitskiy et al. (2021), at 224x224: 86.6 M in 152 tensors.
    "vit-b16": lambda: [
        *((1, 1, D), (1, 197, D), (D, 3, 16, 16), (D,)), *(12 * VIT), *LN, (1000, D), (1000,)
    ],
    # Radford et al. (2019), with tied embeddings: 124.4 M in 148 tensors.
    "gpt2-small": lambda: [(50257, D), (1024, D), *(12 * GPT2), *LN],
    "transformer-1b": lambda: llama(32000, 2048, 256, 5632, 22),  # TinyLlama: 1.10 B in 201
    "transformer-7b": lambda: llama(32000, 4096, 4096, 11008, 32),  # Llama-7B: 6.74 B in 291
}  # fmt: skip
CPU_MODELS, LARGE_MODELS = tuple(MODELS)[:4], tuple(MODELS)[4:]  # those on a GPU, in bfloat16
