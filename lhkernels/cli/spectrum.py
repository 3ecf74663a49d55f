"""``lhkernels spectrum``: the local Hessian's spectrum, block by block."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lhkernels.cli import spectrum_output as output
from lhkernels.cli.errors import CommandError, check_writable

if TYPE_CHECKING:
    from torch import Tensor

    from lhkernels.cli.spectrum_blocks import Block
    from lhkernels.hessian import LocalHessian, Spectrum

DATA = ("synthetic", "digits", "fashion-mnist", "cifar10", "cifar100")
DTYPES = ("float32", "float64")
LARGEST_IMAGE = 512  # pixels; a dense layer on such an image is large enough

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
    group = parser.add_argument_group("network and data")
    group.add_argument("--model", default="vgg-small", metavar="NAME", help="(default: vgg-small)")
    group.add_argument("--width", type=float, default=1.0, metavar="X", help="times its channels")
    group.add_argument(
        "--init", default="default", help="default, orthogonal, gaussian: entries N(0, 1/fan_out)"
    )
    group.add_argument(
        "--init-scale", type=float, default=1.0, metavar="C", help="multiplies every weight matrix"
    )
    group.add_argument("--data", default="synthetic", metavar="NAME", help=", ".join(DATA))
    group.add_argument("--data-dir", metavar="DIR", help="folder of the data set's files")
    group.add_argument(
        "--image", type=int, metavar="N", help="side of synthetic images (default: 16, or larger)"
    )
    group.add_argument("--batch", type=int, default=32, metavar="N", help="images (default: 32)")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="(default: 0)")
    group.add_argument("--dtype", default="float32", help="float32 (default), float64")
    group.add_argument("--device", default="cpu", help="cpu (default), cuda")
    group = parser.add_argument_group("Hessian and spectrum")
    group.add_argument("--list", action="store_true", help="list the blocks and stop")
    group.add_argument("--block", metavar="NAME", help="a module's path, such as features.0")
    group.add_argument("--no-bn", action="store_true", help="leave the batch norm out of a block")
    group.add_argument("--wrt", default="weight", help="weight (default), input")
    group.add_argument("--kind", default="gauss_newton", help="gauss_newton (default), full")
    group.add_argument(
        "--approximate", action="store_true", help="drop BN's terms in 1/m, the paper's (17)-(18)"
    )
    group.add_argument("--method", default="auto", help="auto (default), exact, slq, lanczos")
    group.add_argument("--probes", type=int, metavar="N", help="random vectors of slq")
    group.add_argument("--steps", type=int, metavar="N", help="Lanczos steps")
    group.add_argument("--plot", metavar="FILE.png", help="draw the spectra")
    group.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the spectra that ``args`` ask for."""
    check(args)
    model, images, labels = prepare(args)
    blocks = chosen_blocks(args, model)
    if args.list:
        return output.list_blocks(args, model, blocks, images, labels)
    if not args.json:
        print("\n".join(output.heading(args, images)))
    found = []
    for block in blocks:
        try:
            found.append((block, *measure(args, model, block, images, labels)))
        except (TypeError, ValueError, MemoryError) as error:
            raise CommandError(f"block {block.name} ({block.what}): {error}") from error
    if args.json:
        rows = [output.as_json(block, H, S) for block, H, S in found]
        print(
            json.dumps({"options": output.options(args), "blocks": rows}, indent=2, allow_nan=False)
        )
    elif args.block:
        print(output.one_block(*found[0]))
    else:
        print(output.all_blocks(found))
    if args.plot:
        output.draw(found, args)
    return 0


def check(args: argparse.Namespace) -> None:
    """Everything that can be told from the options alone."""
    import torch

    from lhkernels.cli.spectrum_blocks import INITS, MODELS
    from lhkernels.hessian.operator import KINDS, WRT
    from lhkernels.hessian.spectrum import METHODS

    choices = {
        "model": MODELS,
        "init": INITS,
        "data": DATA,
        "dtype": DTYPES,
        "device": ("cpu", "cuda"),
        "wrt": WRT,
        "kind": KINDS,
        "method": METHODS,
    }
    for name, allowed in choices.items():
        if getattr(args, name) not in allowed:
            raise CommandError(
                f"--{name} {getattr(args, name)} is unknown; choose of {', '.join(allowed)}"
            )
    for name in ("batch", "image", "probes", "steps"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise CommandError(f"--{name} {value} is not >= 1")
    for name in ("width", "init_scale"):
        value = getattr(args, name)
        if not 0 < value < math.inf:
            raise CommandError(f"--{name.replace('_', '-')} {value:g} is not a finite number > 0")
    if args.image is not None and (args.data != "synthetic" or args.image > LARGEST_IMAGE):
        raise CommandError(
            f"--image {args.image}: for --data synthetic only, at most {LARGEST_IMAGE}"
        )
    if args.device == "cuda" and not torch.cuda.is_available():
        raise CommandError("--device cuda, but torch finds no CUDA device; pass --device cpu")
    if not -(2**63) <= args.seed < 2**64:
        raise CommandError(f"--seed {args.seed} does not fit 64 bits; pass such as --seed 0")
    if args.plot is not None:
        if Path(args.plot).suffix != ".png" or not Path(args.plot).parent.is_dir():
            raise CommandError(
                f"--plot {args.plot}: pass a name ending in .png in a folder that exists"
            )
        check_writable("--plot", Path(args.plot))


def prepare(args: argparse.Namespace) -> tuple[Any, Tensor, Tensor]:
    """The network in train mode, images and labels."""
    import torch

    from lhkernels.cli import spectrum_blocks as networks

    torch.manual_seed(args.seed)
    side = networks.smallest_side(args.model)
    if args.data == "synthetic":
        wanted = args.image or max(16, side)
        if wanted < side:
            raise CommandError(f"--image {wanted}: {args.model} needs at least {side}")
        images = torch.randn(args.batch, 3, wanted, wanted)
        labels, classes = torch.randint(10, (args.batch,)), 10
    else:
        images, labels, classes = real_images(args, side)
    images = images.to(args.device, getattr(torch, args.dtype))
    model = networks.build(args.model, images.shape[1], images.shape[2], classes, args.width)
    networks.reinitialise(model, args.init, args.init_scale)
    return model.to(images), images, labels.to(args.device)


def real_images(args: argparse.Namespace, side: int) -> tuple[Tensor, Tensor, int]:
    """A random batch of the training images, of mean 0 and standard deviation 1 per channel."""
    import torch

    from lhkernels.training.data import channel_statistics, zero_pad
    from lhkernels.training.errors import TrainingError
    from lhkernels.training.sources import load_raw

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


def chosen_blocks(args: argparse.Namespace, model: Any) -> list[Block]:
    """--block, or all of them."""
    from lhkernels.cli.spectrum_blocks import block_of, named_blocks

    blocks = named_blocks(model, with_batch_norm=not args.no_bn)
    if not args.block:
        return blocks
    try:
        return [block_of(model, args.block, with_batch_norm=not args.no_bn)]
    except KeyError as error:
        names = ", ".join(block.name for block in blocks)
        raise CommandError(
            f"--block {args.block} is not in {args.model}; it has {names}"
        ) from error


def measure(
    args: argparse.Namespace, model: Any, block: Block, images: Tensor, labels: Tensor
) -> tuple[LocalHessian, Spectrum]:
    """The block's operator and its spectrum."""
    from importlib.util import find_spec

    from lhkernels.cli.spectrum_blocks import record
    from lhkernels.hessian import LocalHessian, spectrum

    seen = record(model, block, images, labels)
    H = LocalHessian(
        block.module,
        seen.inputs,
        args.wrt,
        args.kind,
        seen.output_grad if args.kind == "full" else None,
        approximate=args.approximate,
    )
    progress = sys.stderr.isatty() and find_spec("rich") is not None
    found = spectrum(
        H, args.method, probes=args.probes, steps=args.steps, seed=args.seed, progress=progress
    )
    return H, found
