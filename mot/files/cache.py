"""The folder of what can be made again."""

import os
import stat
from pathlib import Path


def cache_folder() -> Path | None:
    """Where what can be made again is kept, ready to be written: `$XDG_CACHE_HOME/mot`, by default `~/.cache/mot`.

    Where that cannot be, as without a home, it is a folder of this user alone among the temporary files, and None where
    there is no such folder either.
    """
    usual = os.environ.get("XDG_CACHE_HOME") or _home_cache()
    if usual and _is_ready(folder := Path(usual) / "mot"):
        return folder
    return _temporary()


def _home_cache() -> str:
    """`~/.cache`; "" where there is no home: nobody wants one to be made."""
    home = os.path.expanduser("~")
    return os.path.join(home, ".cache") if os.path.isabs(home) and os.path.isdir(home) else ""


def _is_ready(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _temporary() -> Path | None:
    """Others may write beside it, and what lies in it is trusted: it must be this user's, and closed to others."""
    import tempfile  # takes as long to import as all of the above, and is seldom needed

    try:
        folder = Path(tempfile.gettempdir()) / f"mot-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    safe = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return folder if safe and _is_ready(folder) else None
