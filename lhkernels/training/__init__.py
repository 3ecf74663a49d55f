"""Training of image classifiers by several optimizers side by side.

=============  ============================================================
config         TrainConfig: the options, their defaults and their checks
sources        data sets from files, which ``formats`` reads
data, augment  batches of them
models         VGG nets as the paper has them
optimizers     the ones that are compared
loop           one network and one optimizer, epoch by epoch
study          all of them side by side, and resuming
folder         the files of a run
report, plots  what is made of its records
display        progress and tables on a terminal
=============  ============================================================
"""

from lhkernels.training.config import TrainConfig
from lhkernels.training.errors import ConfigError, DataError, TrainingError
from lhkernels.training.models import VGG
from lhkernels.training.study import Observer, train

__all__ = ["VGG", "ConfigError", "DataError", "Observer", "TrainConfig", "TrainingError", "train"]
