"""Core: How deep in a network each parameter lies, derived from the module tree as the parameter names spell it.

A block is one of several numbered siblings that resemble each other (``encoder.layer.0``, ``h.3``, ``layer2``);
where nothing is repeated, as in a plain CNN or MLP, each numbered layer is a block.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from heldout.errors import checked

_NUMBERED = re.compile(r"(.*?)(\d+)")
_NESTED_LAYER = re.compile(r"\d+\.")  # the parameter of a sequential container inside a layer
_SMALLEST_STACK = 0.05  # of the tensors of the largest stack: below, it is an accessory and not a tower

Stacks = dict[str, list[list[str]]]  # pattern -> block number -> module paths of that block


class BlockIndex(dict[str, int | None]):
    """Block number of each parameter, None outside the blocks.

    Attributes:
        depths: number of blocks in the stack that holds a parameter, by parameter name (blocks only). An encoder
            and a decoder are stacks of their own.

    Example:
        >>> index = BlockIndex(["embed.w", "h.0.w", "h.1.w"], {"h.{}": [["h.0"], ["h.1"]]})
        >>> dict(index), index.depths
        ({'embed.w': None, 'h.0.w': 0, 'h.1.w': 1}, {'h.0.w': 2, 'h.1.w': 2})
    """

    @checked
    def __init__(self, names: Iterable[str], stacks: Stacks) -> None:
        super().__init__()
        self.depths: dict[str, int] = {}
        place = {
            path: (number, len(blocks))
            for blocks in stacks.values()
            for number, paths in enumerate(blocks)
            for path in paths
        }
        for name in names:
            number, depth = next((place[path] for path in _ancestors(name) if path in place), (None, 0))
            self[name] = number
            if number is not None:
                self.depths[name] = depth


@checked
def block_index(model: nn.Module | Mapping[str, Any], blocks: str | Sequence[str] | None = None) -> BlockIndex:
    """Returns the block number of every parameter, counted from 0 at the input; None outside the blocks.

    Encoder and decoder stacks, or two towers, are numbered separately. Numbered stages (``layer1`` ... ``layer4``
    of a ResNet) are the blocks of a network that has them.

    Args:
        model: a module, or a state dict (names and shapes are all that is used).
        blocks: None finds them. A pattern such as ``"encoder.layer.{}"`` names them; every place in the tree that
            it fits is a stack of its own. A sequence of module paths lists one stack from input to output.

    Raises:
        ValueError: if there is no list of at least 2 blocks, or ``blocks`` fits nothing.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> block_index(net)["2.weight"], block_index(net, blocks=["0", "2"])["4.weight"]
        (1, None)
    """
    names = [name for name, _ in model.named_parameters()] if isinstance(model, nn.Module) else list(model)
    return BlockIndex(names, find_blocks(model, blocks))


def find_blocks(model: nn.Module | Mapping[str, Any], blocks: str | Sequence[str] | None = None) -> Stacks:
    """Returns the stacks of blocks of a model: pattern -> one list of module paths per block."""
    in_order = isinstance(model, nn.Module)  # the names in a file are sorted, so their order tells nothing
    tensors = dict(model.named_parameters()) if isinstance(model, nn.Module) else model
    rank = {name: len(value.shape) for name, value in tensors.items()}
    if blocks is not None:
        return _named_stacks(rank, blocks)
    containers = _numbered_children(rank)
    stacks = _repeated_blocks(containers) or _layer_chain(containers, rank, in_order)
    matrices = [name for name in rank if rank[name] >= 2]
    index = BlockIndex(matrices, stacks)
    if not matrices or 2 * len(index.depths) < len(matrices):
        raise ValueError(
            f"found no list of at least 2 repeated blocks that holds most of the weights of this model "
            f"({', '.join(list(rank)[:3])}, ...); name the blocks, for example blocks='encoder.layer.{{}}'"
        )
    return stacks


def _ancestors(name: str) -> Iterator[str]:
    for position, character in enumerate(name):
        if character == ".":
            yield name[:position]


def _named_stacks(names: Iterable[str], blocks: str | Sequence[str]) -> Stacks:
    if not isinstance(blocks, str):
        paths = list(blocks)
        unused = [path for path in paths if not any(path in _ancestors(name) for name in names)]
        if unused:
            raise ValueError(f"blocks names modules without parameters: {', '.join(unused[:3])}")
        return {", ".join(paths): [[path] for path in paths]}
    if blocks.count("{}") != 1:
        raise ValueError(f"blocks needs one {{}} where the block number stands, got {blocks!r}")
    fits = re.compile(rf"((?:.*?\.)?){re.escape(blocks).replace(re.escape('{}'), '([0-9]+)')}(?=\.)")
    found: dict[str, dict[int, str]] = defaultdict(dict)
    for name in names:
        if match := fits.match(name):
            found[match[1] + blocks][int(match[2])] = match[0]
    if not found:
        raise ValueError(f"blocks={blocks!r} fits no parameter; the first are {', '.join(list(names)[:3])}")
    return {pattern: [[units[number]] for number in sorted(units)] for pattern, units in found.items()}


def _numbered_children(names: Iterable[str]) -> dict[str, dict[str, list[str]]]:
    """Returns pattern -> path of a numbered module -> its parameters, relative to it; outer patterns first."""
    containers: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in names:
        for path in _ancestors(name):
            parent, dot, last = path.rpartition(".")
            if match := _NUMBERED.fullmatch(last):
                containers[f"{parent}{dot}{match[1]}{{}}"][path].append(name[len(path) + 1 :])
    return dict(sorted(containers.items(), key=lambda item: item[0].count(".")))


def _number(path: str) -> int:
    match = _NUMBERED.fullmatch(path.rpartition(".")[2])
    assert match is not None
    return int(match[2])


def _repeated_blocks(containers: dict[str, dict[str, list[str]]]) -> Stacks:
    stacks: Stacks = {}
    sizes: dict[str, int] = {}
    taken: set[str] = set()
    for pattern, units in containers.items():
        if any(path in taken for path in _ancestors(pattern)):
            continue
        contents = {
            path: frozenset(names)
            for path, names in units.items()
            if len({name.rpartition(".")[0] for name in names}) >= 2
        }
        paths = [path for path in contents if _resembles_another(path, contents)]
        if len(paths) >= 2:
            if not pattern.endswith(".{}") and pattern != "{}":  # a name such as "block1" says it is one of a series
                paths = list(contents)
            taken.update(paths)
            stacks[pattern] = [[path] for path in sorted(paths, key=_number)]
            sizes[pattern] = sum(len(contents[path]) for path in paths)
    smallest = _SMALLEST_STACK * max(sizes.values(), default=0)
    return {pattern: blocks for pattern, blocks in stacks.items() if sizes[pattern] >= smallest}


def _resembles_another(path: str, contents: Mapping[str, frozenset[str]]) -> bool:
    own = contents[path]
    return any(2 * len(own & other) >= min(len(own), len(other)) for key, other in contents.items() if key != path)


def _layer_chain(containers: dict[str, dict[str, list[str]]], rank: Mapping[str, int], in_order: bool) -> Stacks:
    """Returns the longest run of numbered layers below one module; a normalization belongs to the layer before it."""
    runs: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for pattern, units in containers.items():
        run = _owner(pattern) if in_order else pattern
        for path in sorted(units, key=_number):
            if not all(_NESTED_LAYER.match(name) for name in units[path]):
                runs[run][path] = units[path]
    modules = list(dict.fromkeys(path for name in rank for path in _ancestors(name)))
    chains: Stacks = {}
    for run, units in runs.items():
        chain: list[list[str]] = []
        for path in sorted(units, key=modules.index) if in_order else units:
            if chain and all(rank[f"{path}.{name}"] < 2 for name in units[path]):
                chain[-1].append(path)
            else:
                chain.append([path])
        chains[run] = chain
    candidates = {run: chain for run, chain in chains.items() if len(chain) >= 2}
    if not candidates or (len(candidates) > 1 and not in_order):
        return {}
    longest = max(candidates, key=lambda run: len(candidates[run]))
    return {longest: candidates[longest]}


def _owner(pattern: str) -> str:
    """Returns the module whose forward pass runs these layers: sequential containers below it count as one."""
    parts = pattern.split(".")
    if parts.pop() == "{}":
        while parts and parts[-1].isdigit():
            parts.pop()
        parts = parts[:-1]
    return ".".join(parts)
