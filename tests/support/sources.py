"""The project's source files and their modules, for tests that read code."""

from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("mot", "configs", "scaling", "launch")
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def name_of(path: Path) -> str:
    """`mot.model.router` of its file, `mot.model` of the package's."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path) for path in SOURCES}
