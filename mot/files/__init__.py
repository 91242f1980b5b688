"""Files that are whole or absent, in folders of this machine and in buckets, and the folder of what can be made again.

A bucket's objects appear whole, and are neither appended to nor renamed. What is the same for both is a method of
`pathlib.Path`; this room has the rest.
"""

from mot.files.cache import cache_folder
from mot.files.paths import (
    NUMBER,
    absolute,
    as_path,
    fault_of,
    is_address,
    is_bucket,
    make_folder,
    modified,
    move,
    names_within,
    numbered,
    remove,
    size,
    touch,
)
from mot.files.writing import (
    Appender,
    Parts,
    appender,
    digest_of,
    read_appended,
    replacing,
    sync,
    whole_folder,
    write_atomically,
)

__all__ = [
    "NUMBER",
    "Appender",
    "Parts",
    "absolute",
    "appender",
    "as_path",
    "cache_folder",
    "digest_of",
    "fault_of",
    "is_address",
    "is_bucket",
    "make_folder",
    "modified",
    "move",
    "names_within",
    "numbered",
    "read_appended",
    "remove",
    "replacing",
    "size",
    "sync",
    "touch",
    "whole_folder",
    "write_atomically",
]
