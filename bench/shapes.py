"""Parameter shapes of real networks, biases and normalisation parameters included."""

from __future__ import annotations

from collections.abc import Callable

Shape = tuple[int, ...]


def vgg13() -> list[Shape]:
    """The paper's VGG13 for CIFAR-10: no biases, no BN parameters, one linear layer."""
    widths = (64, 64, 128, 128, 256, 256, 512, 512, 512, 512)
    convs = [(o, i, 3, 3) for i, o in zip((3, *widths), widths)]
    return [*convs, (10, 512)]


def resnet50() -> list[Shape]:
    """He et al. (2016), ImageNet: 25.6 M in 161 tensors."""
    shapes: list[Shape] = []

    def conv_bn(n_out: int, n_in: int, k: int) -> None:
        shapes.extend([(n_out, n_in, k, k), (n_out,), (n_out,)])

    conv_bn(64, 3, 7)
    n_in = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            conv_bn(width, n_in, 1)
            conv_bn(width, width, 3)
            conv_bn(4 * width, width, 1)
            if block == 0:
                conv_bn(4 * width, n_in, 1)
            n_in = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def vit_b16() -> list[Shape]:
    """Dosovitskiy et al. (2021), ViT-B/16 at 224x224: 86.6 M in 152 tensors."""
    d = 768
    layer = [(d,), (d,), (3 * d, d), (3 * d,), (d, d), (d,), (d,), (d,)]
    layer += [(4 * d, d), (4 * d,), (d, 4 * d), (d,)]
    stem: list[Shape] = [(1, 1, d), (1, 197, d), (d, 3, 16, 16), (d,)]
    return [*stem, *(12 * layer), (d,), (d,), (1000, d), (1000,)]


def gpt2_small() -> list[Shape]:
    """Radford et al. (2019), GPT-2 small with tied embeddings: 124.4 M in 148 tensors."""
    d = 768
    layer = [(d,), (d,), (d, 3 * d), (3 * d,), (d, d), (d,), (d,), (d,)]
    layer += [(d, 4 * d), (4 * d,), (4 * d, d), (d,)]
    return [(50257, d), (1024, d), *(12 * layer), (d,), (d,)]


def llama(vocabulary: int, d: int, kv: int, hidden: int, layers: int) -> list[Shape]:
    """A decoder in Llama's layout: no biases, RMSNorm, gated MLP, untied embeddings."""
    layer = [(d, d), (kv, d), (kv, d), (d, d), (hidden, d), (hidden, d), (d, hidden), (d,), (d,)]
    return [(vocabulary, d), *(layers * layer), (d,), (vocabulary, d)]


def transformer_1b() -> list[Shape]:
    """TinyLlama's shapes: 1.10 B in 201 tensors."""
    return llama(32000, 2048, 256, 5632, 22)


def transformer_7b() -> list[Shape]:
    """Llama-7B's shapes: 6.74 B in 291 tensors."""
    return llama(32000, 4096, 4096, 11008, 32)


MODELS: dict[str, Callable[[], list[Shape]]] = {
    "vgg13": vgg13,
    "resnet50": resnet50,
    "vit-b16": vit_b16,
    "gpt2-small": gpt2_small,
    "transformer-1b": transformer_1b,
    "transformer-7b": transformer_7b,
}

CPU_MODELS = ("vgg13", "resnet50", "vit-b16", "gpt2-small")
LARGE_MODELS = ("transformer-1b", "transformer-7b")  # on a GPU, in bfloat16
