"""The command: `mot ...`, and `python -m mot ...`.

launch/, scaling/ and configs/ lie beside this package in a checkout. Installed, they lie inside it (pyproject.toml), so
that mot takes no name at the top level from anybody else. The command calls them by their short names in either place,
and so do configuration files: in this process these names are mot's, whatever else has them.
"""

import importlib
import importlib.util
import sys
from pathlib import Path

PACKAGES = ("configs", "launch", "scaling")
HERE = Path(__file__).parent


def main() -> int:
    for name in PACKAGES:
        take(name)
    return importlib.import_module("launch.cli").main()


def take(name: str) -> None:
    """Imports one of PACKAGES by its short name."""
    inside = HERE / name
    folder = inside if inside.is_dir() else HERE.parent / name
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    sys.exit(main())
