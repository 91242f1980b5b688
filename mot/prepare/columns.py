"""What a column of a Parquet table may hold, by its Arrow type.

pyarrow takes 0.2 s to import, which other formats need not wait for.
"""

from collections.abc import Callable

ENCODED = "binary or a struct of bytes (binary) and path (string), or lists of these or of paths"


def is_encoded(column) -> bool:
    """Encoded media or lists of these, or lists of paths, or of mmc4's objects."""
    from pyarrow import types

    if is_media(column) or types.is_null(column):
        return True
    if not is_list(column):
        return False
    inner = column.value_type
    is_matched = types.is_struct(inner) and inner.get_field_index("matched_text_index") >= 0
    return is_media(inner) or is_text(inner) or types.is_null(inner) or is_matched


def is_array(column, is_element: Callable) -> bool:
    """.npy files, or lists, or lists of lists, of what `is_element` says."""
    from pyarrow import types

    if is_media(column) or types.is_null(column):
        return True
    if not is_list(column):
        return False
    inner = column.value_type
    return is_element(inner.value_type if is_list(inner) else inner)


def is_integer(column) -> bool:
    from pyarrow import types

    return types.is_integer(column)


def is_floating(column) -> bool:
    from pyarrow import types

    return types.is_floating(column)


def is_number(column) -> bool:
    from pyarrow import types

    return types.is_floating(column) or types.is_integer(column) or types.is_boolean(column)


def is_bytes(column) -> bool:
    from pyarrow import types

    return types.is_binary(column) or types.is_large_binary(column)


def is_text(column) -> bool:
    from pyarrow import types

    return types.is_string(column) or types.is_large_string(column)


def is_list(column) -> bool:
    from pyarrow import types

    return types.is_list(column) or types.is_large_list(column) or types.is_fixed_size_list(column)


def is_media(column) -> bool:
    """Encoded bytes, or Hugging Face's struct of bytes and path."""
    from pyarrow import types

    if not types.is_struct(column):
        return is_bytes(column)
    place = column.get_field_index("path")
    named = place < 0 or is_text(column.field("path").type) or types.is_null(column.field("path").type)
    return named and column.get_field_index("bytes") >= 0 and is_bytes(column.field("bytes").type)
