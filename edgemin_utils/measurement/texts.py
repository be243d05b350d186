"""Rows of text to time models on: a file's lines, or the dev rows of a task."""

from pathlib import Path

from edgemin_utils.config import load_settings
from edgemin_utils.data import load_task_data
from edgemin_utils.errors import DataError
from edgemin_utils.tasks import resolve_task


def read_texts(
    file: str | None = None, task: str = "sst2", data_dir: str | None = None, rows: int = 100
) -> tuple[list[tuple[str, ...]], str]:
    """The first rows, and one sentence on where they come from.

    Args:
        file: a text file with one row a line, a tab between its two texts if it has two; blank lines are passed over.
        task, data_dir: where `file` is None, the dev rows of that task: of the folder, else of the embedded corpora.
        rows: most rows.

    Raises:
        DataError: the file is missing, not UTF-8 or empty, or the folder holds no such task.
    """
    if file is None:
        settings = load_settings("demo", {"data_dir": data_dir} if data_dir else {})
        data = load_task_data(settings, resolve_task(settings, task).name, 0)
        split = next(iter(data.dev.values()))
        chosen = split.select(range(min(rows, len(split))))
        return [tuple(row[column] for column in data.task.text_columns) for row in chosen], data.source
    try:
        lines = Path(file).expanduser().read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(f"there is no file {file}; check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as UTF-8 text ({error})") from error
    texts = [tuple(line.split("\t")[:2]) for line in lines if line.strip()][:rows]
    if not texts:
        raise DataError(f"{file} holds no text; write one row a line")
    return texts, f"lines of {Path(file).name}"
