"""What the Dockerfile promises, read from it: no engine is needed."""

import json
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def _stages() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """By name: what each stage starts from, and its instructions."""
    text = (ROOT / "docker" / "Dockerfile").read_text("utf-8")
    text = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    stages: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    instructions: list[tuple[str, str]] = []
    for line in filter(None, text.replace("\\\n", " ").splitlines()):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.split()
            stages[name] = (base, instructions := [])
        else:
            instructions.append((word, rest.strip()))
    return stages


STAGES = _stages()
ALL = [instruction for _, instructions in STAGES.values() for instruction in instructions]


def test_the_classic_builder_knows_every_instruction() -> None:
    assert {word for word, _ in ALL} <= {
        "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "LABEL", "RUN", "STOPSIGNAL", "USER", "WORKDIR"
    }  # fmt: skip
    assert not [rest for word, rest in ALL if word == "RUN" and ("--mount" in rest or "<<" in rest)]


@pytest.mark.parametrize("target", ["cpu", "trainer"])
def test_images_run_one_program_as_a_plain_user(target: str) -> None:
    base, own = STAGES[target]
    instructions = STAGES[base][1] + own
    said = dict(instructions)
    assert json.loads(said["ENTRYPOINT"]) == ["tini", "--", "fourstage"]
    assert said["USER"] == "10001:10001"
    assert [word for word, _ in own] == ["COPY", "COPY"]
    # pip, compilers and caches stay where they were needed.
    assert all(rest.startswith("--from=") for word, rest in instructions if word == "COPY")
    assert "pip " not in " ".join(rest for word, rest in instructions if word == "RUN")


def test_nothing_comes_from_the_network_but_packages_and_these_are_pinned() -> None:
    for word, rest in ALL:
        assert word != "ADD"
        assert not re.search(r"\b(curl|wget|git)\b", rest)
    environment = dict(
        part.split("=", 1) for word, rest in STAGES["dependencies"][1] if word == "ENV" for part in rest.split()
    )
    assert environment["PIP_CONSTRAINT"] == environment["PIP_BUILD_CONSTRAINT"] == "/build/constraints.txt"
    for stage, (base, instructions) in STAGES.items():
        if any("pip " in rest for word, rest in instructions if word == "RUN"):
            assert "dependencies" in (stage, base)


def test_every_package_that_images_need_is_pinned() -> None:
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    assert {"setuptools", "torch", "safetensors", "numpy"} <= {name.lower() for name in pinned}


def test_the_context_holds_what_is_copied_and_no_more() -> None:
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    taken = {line[1:] for line in ignored if line.startswith("!")}
    copied = {
        source
        for word, rest in ALL
        if word == "COPY" and not rest.startswith("--from=")
        for source in shlex.split(rest)[:-1]
    }
    assert "*" in ignored
    assert taken == copied
