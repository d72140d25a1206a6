"""What the model is: blocks and architectures."""

from heldout.nn.features import Encoder, evaluating, inputs_for, split_head, why_no_head
from heldout.nn.knn_memory import KNNMemory
from heldout.nn.zoo import mlp, small_cnn

__all__ = ["Encoder", "KNNMemory", "evaluating", "inputs_for", "mlp", "small_cnn", "split_head", "why_no_head"]
