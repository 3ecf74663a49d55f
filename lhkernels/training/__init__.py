"""Training of image classifiers by several optimizers side by side.

=============  =====================================================================
config         TrainConfig: the options with their defaults, ranges and descriptions
sources        data sets from files, which ``formats`` reads
data           batches of them
models         VGG nets as the paper has them
loop           one network and one optimizer, epoch by epoch
trainer        all of them side by side, and resuming
folder         the files of a run
report, plots  what is made of its records
errors         what the user can put right
=============  =====================================================================
"""

from lhkernels.training.config import TrainConfig
from lhkernels.training.errors import ConfigError, DataError, TrainingError
from lhkernels.training.models import VGG
from lhkernels.training.trainer import Observer, train

__all__ = ["VGG", "ConfigError", "DataError", "Observer", "TrainConfig", "TrainingError", "train"]
