"""The paper's own numbers, derived again: what it counted, and beside it the honest count.

`architectures` builds its models from their sizes (random weights: no count and no time here depends on values),
`counts` derives what follows from shapes alone, `timing` what this machine has to measure, `claims` holds both against
the paper's claims, `results` writes tables and figures. `python -m edgemin_utils.paper` does it all.
"""
