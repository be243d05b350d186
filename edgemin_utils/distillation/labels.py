"""No distillation: the labels alone."""

from edgemin_utils.distillation.objective import Lesson, Objective
from edgemin_utils.training import Phase, label_loss


class NoDistillation(Objective):
    """Fine-tuning alone, for as many epochs as a distilled student gets in all: every comparison's baseline."""

    def phases(self, lesson: Lesson) -> list[Phase]:
        return [Phase("labels", lesson.epochs, lesson.settings.prediction_learning_rate, label_loss)]
