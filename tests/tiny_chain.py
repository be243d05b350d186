"""A chain on few rows with small models, for tests that train."""

from edgemin_utils.records import open_run

TINY = {
    "train_rows": 120,
    "dev_rows": 60,
    "teacher_layers": 2,
    "teacher_hidden_size": 24,
    "teacher_heads": 4,
    "teacher_intermediate_size": 48,
    "student": "teacher-layers",
    "student_from_layers": [0],
    "relation_heads": 6,
    "teacher_epochs": 1,
    "distillation_epochs": 0.5,
    "prediction_epochs": 0.5,
    "recovery_epochs": 0.5,
    "vocabulary_size": 600,
    "head_prune_ratio": 0.25,
    "feed_forward_prune_ratio": 0.25,
    "random_draws": 1,
    "importance_rows": 32,
    "latency_lengths": [8],
    "latency_threads": [1],
    "holdout_fraction": 0.2,
}


def tiny_run(folder, task="sst2", seed=0, **overrides):
    return open_run(task, "demo", seed, folder, {**TINY, **overrides})
