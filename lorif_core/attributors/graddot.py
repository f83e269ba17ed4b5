"""The gradient dot product (TracIn at the last checkpoint): LoRIF's index without curvature."""

from __future__ import annotations

from lorif_core.attributors.lorif import LoRIF
from lorif_core.inverse import LayerInverse, identities


class GradDot(LoRIF):
    """score(q, i) = sum over layers <g_q, g_i>; the same options and index as `LoRIF`, H = I.

    Random projections are scaled by 1/sqrt(d), so that the dot product is unbiased; a pca projection keeps its top part.
    """

    def _fit_curvature(self, keep: bool, anew: bool = False) -> dict[str, LayerInverse]:
        return identities({layer.name: layer.size for layer in self.store.manifest.layers}, self.device)
