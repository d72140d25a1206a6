"""Contrastive learning without augmentation: graphs are drawn together by how alike their spectra are (GENNAPE).

Source: arXiv:2211.17226, section "Contrastive learning"; the softmax over distances after its idea.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.errors import check_dimensions, check_finite, check_positive, check_same_length, checked


@checked
def spectral_contrastive(v: Tensor, spectra: Tensor, tau: float = 0.1) -> Tensor:
    """Returns the contrastive loss of a batch whose targets are softmax weights by the distance of spectra, a scalar.

    ``-mean_i sum_{r != i} alpha_ir log softmax_{r != i}(cos(v_i, v_r) / tau)`` with ``alpha_i`` the softmax of
    ``-|spectra_i - spectra_r|`` over the others. It is InfoNCE where ``alpha`` is one-hot.

    Args:
        v: ``(n, dim)``, projected embeddings, of any length; n at least 2. Gradients flow to it alone.
        spectra: ``(n, k)``, of ``laplacian_spectrum``, or other descriptions.
        tau: temperature.

    Raises:
        ValueError: fewer than 2 rows, lengths that differ, a temperature that is not positive, spectra not finite.

    deviation: the mean over i, not the sum, so that a rate does not depend on the size of the batch.

    Source: arXiv:2211.17226.

    Example:
        >>> round(spectral_contrastive(torch.eye(3), torch.zeros(3, 2)).item(), 4)
        0.6931
    """
    check_positive(tau=tau)
    check_dimensions(2, v=v, spectra=spectra)
    check_same_length(v=v, spectra=spectra)
    check_finite(spectra=spectra)
    if len(v) < 2:
        raise ValueError(f"v must have at least 2 rows, got {len(v)}")
    itself = torch.eye(len(v), dtype=torch.bool, device=v.device)
    distances = (spectra[:, None] - spectra).norm(dim=2).to(v.dtype)
    alpha = (-distances).masked_fill(itself, -torch.inf).softmax(1)
    unit = F.normalize(v, dim=1)
    similarity = (unit @ unit.T / tau).masked_fill(itself, -torch.inf)
    return -(alpha * similarity.log_softmax(1).masked_fill(itself, 0.0)).sum(1).mean()
