"""The images of a source, each with its class and its key, sorted.

A key is ``CLASS/STEM``, the source's own names with everything but letters, digits, ``-`` and ``_``
percent-encoded (a class also keeps its dots): WebDataset ends a key at the first dot of its last part, and
DALI's index is separated by blanks. Files of one class that differ only in their extensions get it appended
after a ``~``.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote_from_bytes

from fourstage.errors import SettingsError
from fourstage.store.archives import LeftOut, Listing, Member, list_files
from fourstage.store.index import LONGEST_KEY
from fourstage.store.labels import read_labels
from fourstage.store.manifest import LONGEST_CLASS, MOST_CLASSES

_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing"}


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One file that is to become a sample."""

    key: str
    label: str
    name: str
    """As the source spells it, below the folder that holds the classes."""

    member: Member


@dataclass(frozen=True, slots=True)
class Source:
    """What ``prepare`` works through."""

    images: tuple[SourceImage, ...]
    """Sorted by key; keys are unique."""

    left_out: tuple[LeftOut, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, sorted by code point."""
        return tuple(sorted({image.label for image in self.images}))


def read_source(
    source: Path,
    scratch: Path,
    *,
    labels: Path | None = None,
    labels_map: Path | None = None,
    inside: str = "",
) -> Source:
    """Recognise a source and list its images.

    A folder or tar of class folders, also below one common folder; ILSVRC2012's tar of one tar per class; or,
    with ``labels``, any folder or tar. ``inside`` names the folder of the source to take, for sources that
    hold several splits. ``scratch`` takes the tar of a compressed source. Raises SettingsError, and
    StoreError for a damaged archive.
    """
    listing = list_files(source, scratch)
    hidden = sorted(name for name in listing.members if name.startswith(".") or "/." in name)
    listing.left_out += [LeftOut(name, "a hidden file") for name in hidden]
    for name in hidden:
        del listing.members[name]
    if inside:
        listing = _inside(source, listing, inside.strip("/"))
    listing = _without_common_folder(listing, flat=labels is not None)
    members = listing.members
    left_out = listing.left_out
    if labels is None:
        if labels_map is not None:
            raise SettingsError("--labels-map says what the numbers of --labels mean", hint="give --labels too")
        classes = _folder_classes(source, listing)
        left_out += [LeftOut(name, "not in a class folder") for name in members if name not in classes]
    else:
        classes = read_labels(labels, sorted(members), labels_map)
        left_out += [LeftOut(name, f"{labels.name} has no class for it") for name in members if name not in classes]
        left_out += [LeftOut(name, f"in {labels.name}, not in the source") for name in classes if name not in members]
    images = _with_keys(
        (name, name if labels else name.partition("/")[2], classes[name], member)
        for name, member in members.items()
        if name in classes
    )
    left_out += [
        LeftOut(image.name, f"its key has {len(image.key)} characters, its class {len(image.label)}")
        for image in images
        if _too_long(image)
    ]
    images = [image for image in images if not _too_long(image)]
    if not images:
        raise SettingsError(f"{source} holds no file that {labels or 'a class folder'} gives a class")
    found = Source(tuple(images), tuple(sorted(left_out)))
    if (number := len(found.classes)) > MOST_CLASSES:
        raise SettingsError(f"{source} has {number} classes", hint=f"a store has at most {MOST_CLASSES}")
    return found


def _too_long(image: SourceImage) -> bool:
    return len(image.key) > LONGEST_KEY or len(image.label) > LONGEST_CLASS


def _inside(source: Path, listing: Listing, folder: str) -> Listing:
    for candidate in (listing, _without_common_folder(listing, flat=False)):
        if folder in candidate.folders or any(name.startswith(f"{folder}/") for name in candidate.members):
            return _below(candidate, folder)
    tops = sorted({name.partition("/")[0] for name in listing.members if "/" in name})
    raise SettingsError(f"{source} has no folder {folder!r} inside", hint=f"it has {', '.join(tops[:10]) or 'none'}")


def _without_common_folder(listing: Listing, *, flat: bool) -> Listing:
    """Go down while there is one folder only and the classes (``flat``: the files) are not yet at the top."""
    while True:
        tops = {name.partition("/")[0] for name in listing.members if "/" in name}
        deep = flat or any(name.count("/") >= 2 for name in listing.members)
        at_top = flat and any("/" not in name for name in listing.members)
        if len(tops) != 1 or not deep or at_top:
            return listing
        listing = _below(listing, tops.pop())


def _below(listing: Listing, folder: str) -> Listing:
    prefix = f"{folder}/"
    return Listing(
        {name.removeprefix(prefix): m for name, m in listing.members.items() if name.startswith(prefix)},
        {name.removeprefix(prefix) for name in listing.folders if name.startswith(prefix)},
        listing.left_out,
    )


def _folder_classes(source: Path, listing: Listing) -> dict[str, str]:
    """The class of each file that lies in a class folder, which is the first part of its name."""
    classes = {name: name.partition("/")[0] for name in listing.members if "/" in name}
    found = set(classes.values())
    if not found:
        raise SettingsError(
            f"{source} has no class folders",
            hint="for a flat folder or tar give --labels FILE with 'FILENAME CLASS'",
        )
    if found <= _SPLIT_NAMES:
        raise SettingsError(
            f"the folders of {source} are splits, not classes: {', '.join(sorted(found))}",
            hint="name the one to take with --inside",
        )
    for folder in sorted(listing.folders):
        if "/" not in folder and folder not in found:
            listing.left_out.append(LeftOut(folder, "a class folder without files"))
    return classes


def _with_keys(files: Iterable[tuple[str, str, str, Member]]) -> list[SourceImage]:
    """Keys for files given as (name, name below the class, class, member)."""
    named = [(_stem_key(below, label), label, name, member) for name, below, label, member in files]
    shared = Counter(key for key, *_ in named)
    images = [
        SourceImage(key + _extension_key(name) if shared[key] > 1 else key, _printable(label), name, member)
        for key, label, name, member in named
    ]
    images.sort(key=lambda image: image.key)
    return images


def _stem_key(below: str, label: str) -> str:
    *folders, last = below.split("/")
    stem = last.rpartition(".")[0] if "." in last else last
    top = _encoded(label)
    # WebDataset passes over names that begin with two underscores, and every reader over hidden ones.
    if top.startswith((".", "__")):
        top = f"%{ord(top[0]):02X}{top[1:]}"
    return "/".join((top, *(_encoded(part).replace(".", "%2E") for part in (*folders, stem))))


def _extension_key(name: str) -> str:
    last = name.rpartition("/")[2]
    return f"~{_encoded(last.rpartition('.')[2])}" if "." in last else ""


def _printable(label: str) -> str:
    """A class name as text, whatever bytes the file system held."""
    return label.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _encoded(text: str) -> str:
    return quote_from_bytes(text.encode("utf-8", "surrogateescape"), safe="").replace("~", "%7E")
