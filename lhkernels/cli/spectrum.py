"""``lhkernels spectrum``: the local Hessian's spectrum, block by block."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from torch import Tensor, nn

from lhkernels.cli import options
from lhkernels.cli import spectrum_blocks as networks
from lhkernels.cli import spectrum_output as output
from lhkernels.cli.errors import CommandError
from lhkernels.hessian import LocalHessian, Spectrum, spectrum
from lhkernels.hessian.operator import KINDS, WRT
from lhkernels.hessian.spectrum import METHODS
from lhkernels.training.data import channel_statistics, zero_pad
from lhkernels.training.errors import TrainingError
from lhkernels.training.sources import load_raw

DATA = ("synthetic", "digits", "fashion-mnist", "cifar10", "cifar100")
LARGEST_IMAGE = 512  # pixels; a dense layer on such an image is large enough
SIDE = options.number(
    int, lambda n: 1 <= n <= LARGEST_IMAGE, f"a whole number from 1 to {LARGEST_IMAGE}; pass 16"
)

DESCRIPTION = """\
The spectrum of the local Hessian, the curvature of a block's back-matching loss with respect to
its weights or to its input: for one block (--block) with a histogram, else a row for each.
"""

EPILOG = """\
models:
  linear   one fully connected layer without bias; --width is outputs per input
  mlp      (linear, BN, ReLU) three times, linear
  resnet   conv, BN, ReLU, two residual blocks, linear
  vgg-...  as in `lhkernels train`

A convolution or linear layer and the batch norm right behind it are one block (--no-bn: the layer
alone). Batch norms are in train mode. The Hessian is that of the loss summed over the batch; the
gradient at the block's output that --kind full needs is that of the network's mean cross-entropy.

columns:
  dim       size of the Hessian            form      closed, or autograd
  smallest  smallest that is not zero      cond      largest / smallest (non-zero)
  zero      share of zero eigenvalues      mean      trace / dim
Unless the method is exact, smallest and cond are those of the Lanczos process, and what it has not
resolved may lie beyond; and without a closed form of it, mean is an estimate (--block shows its
error).

examples:
  lhkernels spectrum --model vgg-small --data digits
  lhkernels spectrum --model mlp --block 1 --wrt input --init orthogonal
  lhkernels spectrum --model linear --width 0.5 --init gaussian --wrt input --plot law.png
"""


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "spectrum",
        help="the local Hessian's spectrum of a network's blocks",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def choice(name: str, allowed: tuple[str, ...], default: str, note: str = "") -> None:
        text = f"{', '.join(allowed)}{note} (default: {default})"
        add(name, choices=allowed, default=default, metavar="NAME", help=text)

    positive, count = options.positive, options.positive_int
    add = parser.add_argument_group("network and data").add_argument
    choice("--model", networks.MODELS, "vgg-small")
    add("--width", type=positive, default=1.0, metavar="X", help="times its channels")
    choice("--init", networks.INITS, "default", ": entries N(0, 1/fan_out)")
    add("--init-scale", type=positive, default=1.0, metavar="C", help="times every weight matrix")
    choice("--data", DATA, "synthetic")
    add("--data-dir", metavar="DIR", help="folder of the data set's files")
    add("--image", type=SIDE, metavar="N", help="side of synthetic images (default: 16, or larger)")
    add("--batch", type=count, default=32, metavar="N", help="images (default: 32)")
    add("--seed", type=options.seed, default=0, metavar="N", help="(default: 0)")
    choice("--dtype", ("float32", "float64"), "float32")
    add("--device", type=options.device, default="cpu", help="cpu (default), cuda")
    add = parser.add_argument_group("Hessian and spectrum").add_argument
    add("--list", action="store_true", help="list the blocks and stop")
    add("--block", metavar="NAME", help="a module's path, such as features.0")
    add("--no-bn", action="store_true", help="leave the batch norm out of a block")
    choice("--wrt", WRT, "weight")
    choice("--kind", KINDS, "gauss_newton")
    add("--approximate", action="store_true", help="drop BN's terms in 1/m, the paper's (17)-(18)")
    choice("--method", METHODS, "auto")
    add("--probes", type=count, metavar="N", help="random vectors of slq")
    add("--steps", type=count, metavar="N", help="Lanczos steps")
    add("--plot", type=options.picture, metavar="FILE.png", help="draw the spectra")
    add("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the spectra that ``args`` ask for."""
    model, images, labels = prepare(args)
    blocks = chosen_blocks(args, model)
    if args.list:
        all_seen = [networks.record(model, block, images, labels) for block in blocks]
        output.show_list(blocks, all_seen, as_json=args.json)
        return 0
    if not args.json:
        output.show_heading(args, images)
    found = []
    for block in blocks:
        try:
            seen = networks.record(model, block, images, labels)
            found.append((block, *measure(args, block, seen)))
        except (TypeError, ValueError, MemoryError) as error:
            raise CommandError(f"block {block.name} ({block.what}): {error}") from error
    if args.json:
        output.print_json(args, found)
    elif args.block:
        output.show_block(*found[0])
    else:
        output.show_blocks(found)
    if args.plot:
        output.draw(found, args.plot)
    return 0


def prepare(args: argparse.Namespace) -> tuple[nn.Module, Tensor, Tensor]:
    """The network in train mode, images and labels."""
    torch.manual_seed(args.seed)
    side = networks.smallest_side(args.model)
    if args.data == "synthetic":
        wanted = args.image or max(16, side)
        if wanted < side:
            raise CommandError(f"--image {wanted}: {args.model} needs at least {side}")
        images = torch.randn(args.batch, 3, wanted, wanted)
        labels, classes = torch.randint(10, (args.batch,)), 10
    elif args.image is not None:
        raise CommandError(f"--image {args.image}: for --data synthetic only, not {args.data}")
    else:
        images, labels, classes = real_images(args, side)
    images = images.to(args.device, getattr(torch, args.dtype))
    model = networks.build(args.model, images.shape[1], images.shape[2], classes, args.width)
    networks.reinitialise(model, args.init, args.init_scale)
    return model.to(images), images, labels.to(args.device)


def real_images(args: argparse.Namespace, side: int) -> tuple[Tensor, Tensor, int]:
    """A random batch of the training images, of mean 0 and standard deviation 1 per channel."""
    try:
        raw = load_raw(args.data, args.data_dir)
    except TrainingError as error:
        raise CommandError(str(error)) from error
    except ImportError as error:
        raise CommandError(f"{error}; pip install lhkernels[demo]") from error
    total = len(raw.train_images)
    if args.batch > total:
        raise CommandError(f"--batch {args.batch}: {args.data} has {total} training images")
    mean, std = (part.view(-1, 1, 1) for part in channel_statistics(raw.train_images))
    chosen = torch.randperm(total)[: args.batch]
    images = (zero_pad(raw.train_images[chosen], side).float() - mean) / std
    return images, raw.train_labels[chosen].long(), raw.classes


def chosen_blocks(args: argparse.Namespace, model: nn.Module) -> list[networks.Block]:
    """--block, or all of them."""
    blocks = networks.named_blocks(model, with_batch_norm=not args.no_bn)
    if not args.block:
        return blocks
    try:
        return [networks.block_of(model, args.block, with_batch_norm=not args.no_bn)]
    except KeyError as error:
        names = ", ".join(block.name for block in blocks)
        raise CommandError(
            f"--block {args.block} is not in {args.model}; it has {names}"
        ) from error


def measure(
    args: argparse.Namespace, block: networks.Block, seen: networks.Recorded
) -> tuple[LocalHessian, Spectrum]:
    """The block's operator and its spectrum."""
    grad = seen.output_grad if args.kind == "full" else None
    H = LocalHessian(
        block.module, seen.inputs, args.wrt, args.kind, grad, approximate=args.approximate
    )
    how = {name: getattr(args, name) for name in ("method", "probes", "steps", "seed")}
    return H, spectrum(H, **how, progress=sys.stderr.isatty())
