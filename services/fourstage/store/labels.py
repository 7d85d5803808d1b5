"""Which class each file of a flat source belongs to, from a text file."""

from collections.abc import Sequence
from pathlib import Path

from fourstage.errors import SettingsError

_SEPARATORS = ("\t", ",", None)


def read_labels(path: Path, names: Sequence[str], labels_map: Path | None) -> dict[str, str]:
    """The class name of each file that the label file names.

    The file has a line ``FILENAME CLASS`` for each image, separated by a tab, a comma or blanks; or, with
    ``labels_map``, one number a line for the sorted ``names``, as ILSVRC's ground truth has it. Numbers need
    the map (lines ``NUMBER CLASS``): ILSVRC's are not in the order of the sorted class names, so a guess
    would train wrong labels without a sign of it. Raises SettingsError with the line that is wrong.
    """
    lines = _lines(path)
    if all(line.isdecimal() for line in lines):
        if len(lines) != len(names):
            raise SettingsError(
                f"{path} has {len(lines)} numbers for {len(names)} images",
                hint="it must have one line for each file of the source, in the order of the sorted names",
            )
        pairs = list(zip(names, lines, strict=True))
    else:
        pairs = _pairs(path, lines)
    known = set(names)
    # A heading line names no file, so it does not turn a column of numbers into one of names.
    values = [value for name, value in pairs if name.removeprefix("./") in known]
    if not values:
        raise SettingsError(
            f"{path} names no file of the source; its first is {pairs[0][0]!r}",
            hint=f"the source has {', '.join(map(repr, names[:3])) or 'no files'}",
        )
    numbers = all(value.isdecimal() for value in values)
    if numbers and labels_map is None:
        raise SettingsError(
            f"{path} holds numbers ({values[0]!r} first), and nothing says which class each of them is:"
            " ILSVRC's are not in the order of the sorted class names",
            hint="give --labels-map FILE with lines 'NUMBER CLASS' (ILSVRC2012: the development kit's"
            " data/meta.mat holds ILSVRC2012_ID and WNID), or write class names instead of numbers",
        )
    if labels_map is not None:
        if not numbers:
            raise SettingsError(f"--labels-map translates numbers, and {path} holds names", hint="leave it out")
        pairs = _translated(path, pairs, labels_map)
    labels: dict[str, str] = {}
    for name, label in pairs:
        plain = name.removeprefix("./")
        if labels.setdefault(plain, label) != label:
            raise SettingsError(f"{path} gives {name!r} two classes, {labels[plain]!r} and {label!r}")
    return labels


def _translated(path: Path, pairs: list[tuple[str, str]], labels_map: Path) -> list[tuple[str, str]]:
    classes = dict(_pairs(labels_map, _lines(labels_map)))
    missing = next((number for _, number in pairs if number not in classes), None)
    if missing is not None:
        raise SettingsError(f"{path} holds the number {missing}, which {labels_map} does not map to a class")
    return [(name, classes[number]) for name, number in pairs]


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text("utf-8", errors="strict")
    except OSError as error:
        raise SettingsError(f"cannot read the labels {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"the labels {path} are not UTF-8 text", hint="name a text file, not an archive of one"
        ) from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise SettingsError(f"the labels {path} are empty")
    return lines


def _pairs(path: Path, lines: list[str]) -> list[tuple[str, str]]:
    """Lines of two fields; the first separator that fits every line is the file's."""
    for separator in _SEPARATORS:
        pairs = [
            (fields[0].strip(), fields[1].strip())
            for line in lines
            if len(fields := line.split(separator)) == 2 and fields[0].strip() and fields[1].strip()
        ]
        if len(pairs) == len(lines):
            return pairs
    wrong = next((line for line in lines if len(line.split()) != 2), lines[0])
    raise SettingsError(
        f"{path} has the line {wrong!r}",
        hint="each line is two fields, separated by one tab, one comma or blanks",
    )
