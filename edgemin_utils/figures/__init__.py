"""Figures of the study: functions of plain data or of `tables`' frames that return a matplotlib figure.

They draw under one style, never touch pyplot, and show themselves in Jupyter; `save_figure` writes svg and png.
"""

from edgemin_utils.figures.comparison import method_comparison
from edgemin_utils.figures.distillation import objective_loss_curves, relation_matrices, teacher_layer_scan
from edgemin_utils.figures.pareto import pareto_picture
from edgemin_utils.figures.pipeline import pipeline_picture
from edgemin_utils.figures.pruning import cut_curves, importance_heatmaps, removal_curves
from edgemin_utils.figures.quantization import bytes_by_part, layer_sensitivity, quantized_layers
from edgemin_utils.figures.study import (
    accuracy_by_stage,
    accuracy_over_latency,
    cost_by_stage,
    factorial_effects_figure,
)
from edgemin_utils.figures.style import PALETTE, StudyFigure, note_figure, save_figure
from edgemin_utils.figures.training import confusion_matrix, label_balance, token_length_histogram, training_curves

__all__ = [
    "PALETTE",
    "StudyFigure",
    "accuracy_by_stage",
    "accuracy_over_latency",
    "bytes_by_part",
    "confusion_matrix",
    "cost_by_stage",
    "cut_curves",
    "factorial_effects_figure",
    "importance_heatmaps",
    "label_balance",
    "layer_sensitivity",
    "method_comparison",
    "note_figure",
    "objective_loss_curves",
    "pareto_picture",
    "pipeline_picture",
    "quantized_layers",
    "relation_matrices",
    "removal_curves",
    "save_figure",
    "teacher_layer_scan",
    "token_length_histogram",
    "training_curves",
]
