"""Writing a `.qfmt` file from a plan."""

from __future__ import annotations

from pathlib import Path

from qconvert.items import Plan
from qconvert.opening import gguf_header
from qconvert.pairs import recipe_without
from qformat import store
from qformat.file.write import Writer


def qfmt_sink(path: Path, plan: Plan, compress: str) -> Writer:
    """Begin a `.qfmt` file; it keeps the source's recipe."""
    items, model = plan.items, plan.view.model
    specs = [store.tensor_spec(item.name, item.form, item.tensor.shape, item.tensor.dtype, item.part_bytes()) for item in items]
    assets = {name: read() for name, read in model.assets.items()}
    recipe = recipe_without(model, plan.unsaid) if plan.unsaid else model.recipe
    if recipe is not None and recipe.header:
        assets[store.HEADER_ASSET] = recipe.header
    header = gguf_header(model)  # which holds what it says of itself
    kept = {key: value for key, value in model.metadata.items() if header is None or key not in header.key_values}
    metadata = {key: store.typed(value) for key, value in kept.items() if not key.startswith(plan.unsaid)}
    metadata |= {pair.key: store.typed(pair.value) for pair in plan.key_values}
    facts = None if recipe is None else recipe.facts
    return Writer(path, specs, metadata=metadata, assets=assets, recipe=facts, compress=compress)
