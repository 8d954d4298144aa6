"""Looks into a trained net: one page of figures.

    python examples/explain_demosaic.py                  # a bundled photograph
    python examples/explain_demosaic.py PHOTO --out OUT.png
    python examples/explain_demosaic.py --task inpaint

The page shows, for each block and head of the net, which pixels the learned
graph joins to a pixel on an edge, in texture and on a flat place; the filters
that the learned step sizes are; the energy after each step, also with the
step sizes an untrained layer has; the learned metrics; and where the
parameters are. Figures are of what the net leaves to the graph: the signal
minus the guide of its feature nets.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import skimage.data
import torch
from matplotlib.patches import Rectangle
from outputs import check_out
from photos import psnr
from skimage.feature import structure_tensor, structure_tensor_eigenvalues
from torch import Tensor
from torch_geometric.data import Data

from pyg_unroll import (
    Demosaic,
    GLRConv,
    GTVConv,
    Inpaint,
    data_to_image,
    image_to_data,
    mosaic,
)
from pyg_unroll.explain import (
    Trace,
    learned_graphs,
    learned_metrics,
    neighbourhood,
    parameter_table,
    spectral_response,
    trace,
)
from pyg_unroll.imaging.files import read_photo

RADIUS = 7
# Largest differences of two adjacent pixels, of 255, that are put together.
STEPS = (0, 2, 4, 8, 16, 32, 64, 256)


def read_square(path: Path | None, size: int) -> Tensor:
    """A square out of the middle of a photograph, `[3, size, size]`."""
    if path is None:
        photo = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1)
        photo = photo / 255
    else:
        photo = read_photo(path).expand(3, -1, -1)
    height, width = (min(size, s) // 2 * 2 for s in photo.shape[1:])
    if min(height, width) < 6 * RADIUS:
        raise ValueError(
            f'the image must have {6 * RADIUS} pixels a side, and --size be as '
            f'large (got {height} x {width})'
        )
    row, col = (photo.size(1) - height) // 2, (photo.size(2) - width) // 2
    return photo[:, row : row + height, col : col + width].contiguous()


def observe(photo: Tensor, task: str) -> Data:
    """The input of the net: a mosaic, or a third of the pixels."""
    if task == 'demosaic':
        return mosaic(photo, 'RGGB')
    data = image_to_data(photo)
    generator = torch.Generator().manual_seed(0)
    data.mask = torch.rand(len(data.x), generator=generator) < 1 / 3
    data.x = torch.where(data.mask.unsqueeze(1), data.x, 0)
    return data


def pick_pixels(photo: Tensor) -> dict[str, tuple[int, int]]:
    """The straightest edge, the busiest texture, the flattest place."""
    grey = photo.mean(0).numpy()
    tensor = structure_tensor(grey, sigma=2.5, order='rc')
    large, small = structure_tensor_eigenvalues(tensor)
    inner = np.zeros_like(grey, dtype=bool)
    inner[2 * RADIUS : -2 * RADIUS, 2 * RADIUS : -2 * RADIUS] = True
    pixels = {}
    for name, score in (
        ('edge', large - 3 * small),
        ('texture', small),
        ('flat', np.where(abs(grey - 0.5) < 0.3, -large, -np.inf)),
    ):
        best = np.where(inner, score, -np.inf).argmax()
        row, col = np.unravel_index(best, grey.shape)
        pixels[name] = int(row), int(col)
    row, col = pixels['edge']
    # From the middle of the edge to the foot of it.
    down, right = np.gradient(grey)
    length = np.hypot(down[row, col], right[row, col])
    if not length > 0:
        raise ValueError('the image has no edges in its middle; take another')
    pixels['edge'] = (
        row + round(2 * down[row, col] / length),
        col + round(2 * right[row, col] / length),
    )
    return pixels


def score(model: torch.nn.Module, data: Data, photo: Tensor) -> float:
    """PSNR (dB) of the output."""
    with torch.no_grad():
        return psnr(data_to_image(data, model(data)), photo)


def layers(model: torch.nn.Module) -> dict[str, GLRConv | GTVConv]:
    """The solver layers, by names for readers."""
    names = {
        'conv': '',
        'step.smooth_conv': ', smooth',
        'step.fill_conv': ', fill',
    }
    return {
        f'block {k}{names[name]}': layer
        for k, block in enumerate(model.blocks)
        for name, layer in block.named_modules()
        if isinstance(layer, GLRConv | GTVConv)
    }


def without_steps(model: torch.nn.Module, last: bool) -> torch.nn.Module:
    """The same net whose layers, or the last one, take no step."""
    model = copy.deepcopy(model)
    for layer in list(layers(model).values())[-1 if last else 0 :]:
        with torch.no_grad():
            layer.alpha.zero_()
    return model


def initial_steps(model: torch.nn.Module) -> torch.nn.Module:
    """The same net with the step sizes that training started from."""
    model = copy.deepcopy(model)
    for layer in layers(model).values():
        logits = layer.head_logits.detach().clone()
        layer.reset_parameters()
        with torch.no_grad():
            layer.head_logits.copy_(logits)
    return model


def weight_by_difference(graph: Data, photo: Tensor) -> Tensor:
    """Mean share of a neighbour's weight, by how much the pixels differ."""
    colours = photo.flatten(1).T
    row, col = graph.edge_index
    weight = graph.edge_weight.double()
    degree = weight.new_zeros((len(colours), weight.size(1)))
    degree.index_add_(0, row, weight)
    share = weight / degree[row].clamp(min=1e-300)
    difference = 255 * (colours[row] - colours[col]).abs().amax(1)
    groups = torch.bucketize(difference, torch.tensor(STEPS[1:]), right=True)
    return torch.stack(
        [share[groups == k].mean(0) for k in range(len(STEPS) - 1)]
    )


def draw_differences(ax: Any, graphs: dict[str, Data], photo: Tensor) -> str:
    """Draws these shares; returns them in words."""
    names = []
    for k, (name, graph) in enumerate(graphs.items()):
        share = weight_by_difference(graph, photo)
        for head in range(share.size(1)):
            label = f'{name}, head {head}'
            ax.plot(
                range(len(share)),
                100 * share[:, head],
                marker='.',
                color=f'C{k}',
                linestyle='dashed' if head else 'solid',
                label=label,
            )
            ratio = float(share[-1, head] / share[0, head])
            names.append(f'{label}: {ratio:.2f}')
    ax.set_xticks(range(len(STEPS) - 1), [f'<{s}' for s in STEPS[1:]])
    ax.set_xlabel('difference of the two pixels, of 255')
    ax.set_title('% of weight per neighbour')
    ax.set_ylim(0)
    ax.legend(fontsize=7)
    return '\n'.join(names)


def draw_energies(
    axes: Any, names: list[str], learned: Trace, initial: Trace
) -> None:
    """Draws the energies of the learned steps and of the initial ones."""
    for k, (ax, name) in enumerate(zip(axes, names, strict=True)):
        layer = learned.layers[k]
        layer.plot(ax)
        ax.plot(
            initial.layers[k].objective[:, -1].tolist(),
            color='black',
            linestyle='dotted',
            label='combined, initial step sizes',
        )
        ax.legend(fontsize=7)
        rises = [step for step, head in layer.rises() if head == 'combined']
        shown = ', '.join(map(str, rises))
        ax.set_title(
            f'{name}: '
            + (f'rises at {shown}' if rises else 'falls at every step')
        )


def draw_neighbourhoods(
    figure: Any, model: torch.nn.Module, data: Data, photo: Tensor
) -> None:
    """Draws which pixels the learned graphs join to three pixels."""
    names, first = list(layers(model)), next(iter(layers(model).values()))
    heads, hops = first.heads, first.num_steps
    axes = figure.subplots(3, 1 + len(names) * heads)
    pixels = pick_pixels(photo)
    axes[0, 0].imshow(photo.permute(1, 2, 0).numpy())
    size = 2 * RADIUS + 1
    for name, (row, col) in pixels.items():
        corner = col - RADIUS - 0.5, row - RADIUS - 0.5
        style = {'fill': False, 'color': 'deepskyblue', 'linewidth': 1.5}
        axes[0, 0].add_patch(Rectangle(corner, size, size, **style))
        axes[0, 0].text(
            col + RADIUS + 2,
            row,
            name,
            color='white',
            fontsize=8,
            bbox={'facecolor': 'black', 'pad': 1, 'alpha': 0.6},
        )
    axes[0, 0].axis('off')
    for k, (name, pixel) in enumerate(pixels.items()):
        around = neighbourhood(model, data, pixel, hops=hops)
        around.plot(axes[k, 1:], image=photo, radius=RADIUS)
        for number, ax in enumerate(axes[k, 1:]):
            layer, head = divmod(number, heads)
            ax.set_title(f'{name}: {names[layer]}\nhead {head}', fontsize=9)
    graphs = dict(zip(names, learned_graphs(model, data), strict=True))
    ratios = draw_differences(axes[1, 0], graphs, photo)
    write(
        axes[2, 0],
        f'Right: where a walk of {hops} hops\nover the learned weights goes\n'
        f'from the cross.\n\nAbove: weight of a neighbour.\n'
        f'Pixels that differ by {STEPS[-2]} or more,\nagainst those by less '
        f'than {STEPS[1]}:\n{ratios}',
    )


def draw_metrics(axes: Any, model: torch.nn.Module) -> None:
    """Draws the metrics and, last, their eigenvalues."""
    names, last = layers(model), axes[-1]
    heads = next(iter(names.values())).heads
    for k, (name, metric) in enumerate(
        zip(names, learned_metrics(model), strict=True)
    ):
        part = axes[k * heads : (k + 1) * heads]
        metric.plot(part)
        for head, ax in enumerate(part):
            ax.set_title(f'{name}\nhead {head}', fontsize=9)
            last.semilogy(
                metric.eigenvalues[head].flip(0),
                marker='o',
                color=f'C{k}',
                linestyle='dashed' if head else 'solid',
                label=f'{name}, head {head}',
            )
    last.set_title('eigenvalues')
    last.legend(fontsize=7)


def draw_page(
    model: torch.nn.Module, data: Data, photo: Tensor, title: str, path: Path
) -> None:
    """Writes the page."""
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    names = layers(model)
    count = sum(layer.heads for layer in names.values())
    width = 3 * (1 + count)
    figure = plt.figure(figsize=(max(width, 15), 19.5), layout='constrained')
    figure.suptitle(title, fontsize=16)
    parts = figure.subfigures(4, 1, height_ratios=(9.6, 3.2, 3.2, 2.8))
    for part, heading in zip(
        parts,
        (
            '1. The learned graph: who is whose neighbour',
            '2. The filters that the steps are, from smooth on the graph '
            '(left) to rough (right); the exact solution is low-pass',
            '3. The energy after each step, and where the parameters are',
            '4. The learned metrics M',
        ),
        strict=True,
    ):
        part.suptitle(heading, fontsize=13, x=0.01, ha='left', weight='bold')

    draw_neighbourhoods(parts[0], model, data, photo)

    filters = parts[1].subplots(1, 2 * len(names))
    for k, (name, layer) in enumerate(names.items()):
        pair = filters[2 * k : 2 * k + 2]
        spectral_response(layer).plot(pair)
        for ax in pair:
            ax.set_title(f'{name}: {ax.get_title()}', fontsize=9)

    learned, initial = trace(model, data), trace(initial_steps(model), data)
    print(learned)
    for where in learned.rises():
        print('does not descend: {}, step {}, {}'.format(*where))
    panels = parts[2].subplots(1, len(names) + 1)
    draw_energies(panels[:-1], list(names), learned, initial)
    scores = (
        f'PSNR of the output           {score(model, data, photo):6.2f} dB\n'
        f'last layer takes no step     '
        f'{score(without_steps(model, True), data, photo):6.2f} dB\n'
        f'no layer takes a step        '
        f'{score(without_steps(model, False), data, photo):6.2f} dB\n'
        f'initial step sizes           '
        f'{score(initial_steps(model), data, photo):6.2f} dB'
    )
    table = parameter_table(model)
    print(f'{table}\n\n{scores}')
    write(panels[-1], f'{table}\n\n{scores}', family='monospace')

    draw_metrics(parts[3].subplots(1, count + 1), model)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def write(ax: Any, text: str, family: str = 'sans-serif') -> None:
    """Puts text in place of a plot."""
    ax.axis('off')
    ax.text(
        0,
        0.95,
        text,
        va='top',
        family=family,
        transform=ax.transAxes,
        fontsize=9,
    )


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'image',
        nargs='?',
        type=Path,
        help='photograph (default: one that scikit-image ships)',
    )
    parser.add_argument(
        '--task',
        choices=('demosaic', 'inpaint'),
        default='demosaic',
        help='what the net was trained to do (default: %(default)s)',
    )
    parser.add_argument(
        '--prior',
        choices=('glr', 'gtv'),
        default='glr',
        help='smoothness prior (default: %(default)s)',
    )
    parser.add_argument(
        '--size',
        type=int,
        default=256,
        help='pixels a side of the square to look at (default: %(default)s)',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('explain.png'),
        help='the page (default: %(default)s)',
    )
    return parser.parse_args()


def main() -> None:
    """Runs the example."""
    args = parse()
    is_mosaic = args.task == 'demosaic'
    cls, name = (Demosaic, 'bayer') if is_mosaic else (Inpaint, 'random')
    try:
        check_out(args.out)
        photo = read_square(args.image, args.size)
        model = cls.from_pretrained(name, args.prior)
        data = observe(photo, args.task)
        title = f'{cls.__name__}, {name}, {args.prior.upper()}'
        draw_page(model, data, photo, title, args.out)
    except (ValueError, ImportError) as error:
        sys.exit(f'error: {error}')
    print(f'Wrote {args.out}')


if __name__ == '__main__':
    main()
