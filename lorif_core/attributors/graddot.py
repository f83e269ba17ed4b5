"""The gradient dot product (TracIn at the last checkpoint): LoRIF's index without curvature."""

from __future__ import annotations

from lorif_core.attributors.lorif import LoRIF


class GradDot(LoRIF):
    """score(q, i) = sum over layers <g_q, g_i>; the same options and index as `LoRIF`, H = I.

    Random projections are scaled by 1/sqrt(d), so that the dot product is unbiased; a pca projection keeps its top part.
    """

    _curved = False
