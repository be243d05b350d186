"""The embedded corpora: synthetic data sets with the schemas of GLUE's SST-2, MNLI and QQP (see `embedded`)."""
