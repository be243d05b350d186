"""Keeps messages of the libraries out of notebooks where the reader can do nothing about them."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without load reports (a new head is what we ask for), notes on model types, and bars over weight files."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def quiet_torch_ao() -> Iterator[None]:
    """Without the deprecation notices of torch.ao, which `quantization` repeats where it matters."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.ao.quantization is deprecated")
        warnings.filterwarnings("ignore", message=".*quantized tensor creation functions.*")
        yield


@contextmanager
def quiet_onnx() -> Iterator[None]:
    """Without the exporter's and the quantizers' advice: they warn of packages that are not needed here, print each
    step, and recommend a pass that has been done. One of them sets logging up for the whole process when it is
    imported; that is undone."""
    level = logging.root.manager.disable
    root_level, root_handlers = logging.root.level, list(logging.root.handlers)
    logging.disable(max(level, logging.WARNING))
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        logging.root.setLevel(root_level)
        logging.root.handlers[:] = root_handlers
