"""Attribution methods, one file each, behind one protocol (`base.Attributor`)."""

from lorif_core.attributors.base import Attributor
from lorif_core.attributors.graddot import GradDot
from lorif_core.attributors.lorif import LoRIF

__all__ = ["Attributor", "GradDot", "LoRIF"]
