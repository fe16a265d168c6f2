"""What every packing worker needs, loaded once: the fork server imports this, alone.

Not for others: the import itself makes a spectrogram, so that the compiled loops are loaded.
"""

import numpy as np
import soundfile
import soxr

from mstag.config import FeatureConfig
from mstag.data import spectrum_compiled
from mstag.data.features import LogMel
from shard_tools import pack_shard

__all__ = ["pack_shard", "soundfile", "soxr", "spectrum_compiled"]

LogMel(FeatureConfig())(np.zeros(1, np.float32))
