"""What the study measures of a model. The module of memory and energy imports no torch when it is loaded."""
