"""The names that sharding speaks of: axes of the mesh, and logical axes of arrays, which `mesh.rules` maps to them."""

MESH_AXES = ("data", "fsdp", "expert", "context", "tensor")
LOGICAL_AXES = ("batch", "length", "embed", "vocab", "heads", "kv_heads", "head", "mlp", "expert", "layer")
# Logical axes that one array has.
TOGETHER = (
    ("batch", "length", "vocab"),
    ("batch", "length", "heads", "head"),
    ("batch", "length", "mlp"),
    ("layer", "expert", "embed", "mlp"),
    ("layer", "expert", "embed", "heads", "head"),
    ("embed", "vocab"),
)


def names(text: str) -> tuple[str, ...]:
    """`"data,fsdp"` as its names."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
