"""Benchmarks that stand beside the study: `training_speed` of its loops against plain Trainer defaults, and
`edge_bundle` against what people deploy today. `python -m edgemin_utils.benchmark` runs them."""
