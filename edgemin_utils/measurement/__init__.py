"""What the study measures of a model: one module a quantity, each imported by its own name.

`environment` and `memory` import neither torch nor transformers when they are loaded; that is why nothing is
re-exported here (the memory of a fresh process is counted from before those libraries come in).
"""
