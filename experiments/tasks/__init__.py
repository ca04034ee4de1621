"""What can be learned, by name: a task is one file here and a name in this list."""

from experiments.tasks.classification import Classification
from experiments.tasks.detection import Detection
from experiments.tasks.instances import InstanceSegmentation
from experiments.tasks.language import Language
from experiments.tasks.segmentation import Segmentation
from experiments.tasks.task import Task

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "segmentation": Segmentation,
    "detection": Detection,
    "instances": InstanceSegmentation,
    "language": Language,
}
