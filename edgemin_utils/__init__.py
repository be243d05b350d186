"""EdgeMIN: distillation, head pruning and INT8 quantization of transformer text classifiers, step by step."""

__version__ = "0.1.0"
