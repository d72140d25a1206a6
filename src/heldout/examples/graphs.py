"""Call graphs of Python packages: `heldout improve graphs`.

A node is a function of this Python's standard library, joined with those that it calls and is called by; does it
return a value? Four packages are trained on; methods are selected on other functions of them and on two packages more,
and tested on seven others.
"""

from functools import cache, partial

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch
from torch_geometric.nn import SAGEConv

import heldout
from heldout.tasks import call_graph

epochs = 150
batch_size = 2000  # all nodes: every step runs on the whole graph
optimizer = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.01)

TRAIN = ("asyncio", "email", "json", "logging")
VALIDATION = ("collections", "http")
TEST = ("concurrent", "importlib", "multiprocessing", "unittest", "urllib", "wsgiref", "xml")


class Network(nn.Module):
    def __init__(self, features: int = 256, hidden: int = 64, classes: int = 2) -> None:
        super().__init__()
        self.first, self.second = SAGEConv(features, hidden), SAGEConv(hidden, hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = nn.functional.dropout(self.first(x, edge_index).relu(), 0.5, self.training)
        return self.head(self.second(x, edge_index).relu())


def model() -> nn.Module:
    return Network()


@cache
def graph(*packages: str) -> Batch:
    """The functions of some packages, in one graph."""
    found = [call_graph(package, skip=("test", "tests")) for package in packages]
    return Batch.from_data_list(found, exclude_keys=["names"])


def data() -> heldout.Splits:
    known, others = graph(*TRAIN), graph(*VALIDATION)
    share = torch.rand(known.num_nodes, generator=torch.Generator().manual_seed(0))
    validation = (share >= 0.5) & (share < 0.75)
    return heldout.Splits(
        train=(known, share < 0.5),
        val={"same packages": (known, validation), "others": (others, torch.ones(others.num_nodes).bool())},
        test={"same packages": (known, share >= 0.75)}
        | {name: (graph(name), torch.ones(graph(name).num_nodes).bool()) for name in TEST},
    )
