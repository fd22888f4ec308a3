"""The rooms of the package: imports run downwards, and never in a circle."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "ssv2rt"
FLOORS = (
    {"__main__"},
    {"cli"},
    {"commands"},
    {"api"},
    {"report", "export"},
    {"repack"},
    {"benchmark", "doctor"},
    {"scoring"},
    {"engines", "training"},
    {"pipelines", "published"},
    {"dataset", "models"},
    {"video"},
    {"core"},
)
"""From the top. Rooms of one floor do not know each other."""


def imports(file: Path) -> Iterator[str]:
    """The modules of this package that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ssv2rt."):
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("ssv2rt."))


def files() -> Iterator[tuple[str, Path]]:
    """The package's files with the room of each."""
    for file in sorted(PACKAGE.rglob("*.py")):
        if file != PACKAGE / "__init__.py":
            yield file.relative_to(PACKAGE).parts[0].removesuffix(".py"), file


def test_every_room_has_a_floor_and_imports_only_from_below() -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    wrong = [
        f"{file.relative_to(PACKAGE)} imports {module}"
        for room, file in files()
        for module in imports(file)
        if (other := module.split(".")[1]) != room and floor[other] <= floor[room]
    ]
    assert not wrong


def test_no_files_import_each_other_in_a_circle() -> None:
    modules = {".".join(("ssv2rt", *file.relative_to(PACKAGE).with_suffix("").parts)): file for _, file in files()}
    edges = {
        name: {
            found for module in imports(file) if (found := module if module in modules else module.rpartition(".")[0])
        }
        & modules.keys()
        for name, file in modules.items()
    }
    left = dict(edges)
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert not left


def test_pyav_is_used_where_videos_are_read_and_made() -> None:
    """Everything else asks the room `video`."""
    using = {
        str(file.relative_to(PACKAGE))
        for room, file in files()
        if room != "video" and "import av\n" in file.read_text(encoding="utf-8")
    }
    assert using == {
        "benchmark/peers.py",
        "dataset/synthetic.py",
        "doctor/decoder_check.py",
        "pipelines/hand_over.py",
        "repack/encode.py",
        "repack/tiled_jpeg.py",
    }
