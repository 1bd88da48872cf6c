"""Which tensor of one checkpoint is which of another: the same name, a name that a user gave, or the name in another family.

Names alone decide; nothing here looks at a tensor. Where one side has GGUF's names and the other those of HF, the GGUF side is
seen under the latter, as `architectures` says.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from qformat.errors import UsageError, show
from qformat.model import Model


@dataclass(frozen=True, slots=True)
class Rename:
    """A name, or a pattern with one `*`, and what it is called elsewhere; what `*` stood for stands for it there as well."""

    old: str
    new: str

    def apply(self, name: str) -> str | None:
        """Give the new name; None for a name that is not meant.

        >>> Rename("blk.*.ffn_up.weight", "layers.*.up.weight").apply("blk.7.ffn_up.weight")
        'layers.7.up.weight'
        """
        head, star, tail = self.old.partition("*")
        if not star:
            return self.new if name == self.old else None
        if len(name) < len(head) + len(tail) or not name.startswith(head) or not name.endswith(tail):
            return None
        return self.new.replace("*", name[len(head) : len(name) - len(tail)])


@dataclass(frozen=True, slots=True)
class Sides:
    """Two checkpoints by names that can be compared.

    one, other : as they are, or as they are seen
    notices    : what a user should hear of how names were matched
    """

    one: Model
    other: Model
    notices: tuple[str, ...] = ()


def parse_rename(text: str) -> Rename:
    """Read OLD=NEW. Raises UsageError for what is no pair of names, each with at most one `*`."""
    old, _, new = text.partition("=")
    stars = old.count("*"), new.count("*")
    if not old or not new or stars not in ((0, 0), (1, 1), (1, 0)):
        raise UsageError(f"{show(text, quote=True)}: expected OLD=NEW, with one '*' in both or in neither", found=text)
    return Rename(old, new)


def facing(one: Model, other: Model, renames: Sequence[Rename] = ()) -> Sides:
    """See two checkpoints under names that can be compared: one with GGUF's names under HF's, where the other has those.

    Of the other, what a GGUF file leaves out on purpose is left out as well; a copy is read to know that it is one.
    """
    from qconvert import architectures

    families = [architectures.family_of(model) for model in (one, other)]
    if sorted(families) != ["gguf", "hf"] or {_renamed(name, renames) for name in one} == set(other):
        return Sides(one, other)
    is_first = families[0] == "gguf"
    view = architectures.view(one if is_first else other, "hf", with_tokenizer=False)
    if view.missing:
        return Sides(one, other, (f"names are compared as they are: {view.missing}",))
    if is_first:
        known = {_renamed(name, renames) for name in view.model}
        folder, left_out = _without_left_out(other, [name for name in other if name not in known])
    else:
        folder, left_out = _without_left_out(one, [name for name in one if _renamed(name, renames) not in view.model])
    notices = (f"{show(str(view.model.path))} is seen under HF names", *left_out)
    return Sides(view.model, folder, notices) if is_first else Sides(folder, view.model, notices)


def pair_names(
    one: Collection[str], other: Collection[str], renames: Sequence[Rename] = ()
) -> tuple[Mapping[str, str], Sequence[str]]:
    """Find the name in `other` for every name in `one`.

    returns: names in `other` by those in `one`, whether or not they are there; names that only `other` has

    Raises UsageError for a rename that no name is meant by, and for two tensors that come to one name.
    """
    pairs = {name: _renamed(name, renames) for name in one}
    for rename in renames:
        if all(rename.apply(name) is None for name in one):
            raise UsageError(f"--map {show(rename.old, quote=True)}: there is no such tensor among {len(one)}")
    owners: dict[str, str] = {}
    for name, new in pairs.items():
        if owners.setdefault(new, name) != name:
            raise UsageError(f"--map: {show(owners[new], quote=True)} comes to {show(new, quote=True)} as well", tensor=name)
    return pairs, [name for name in other if name not in owners]


def _without_left_out(folder: Model, strangers: Collection[str]) -> tuple[Model, tuple[str, ...]]:
    """Take from a folder those of some tensors that a GGUF file of it would leave out; say so where there are any."""
    from qconvert import architectures

    if not strangers:
        return folder, ()
    left_out = architectures.view(folder, "gguf", with_tokenizer=False).left_out.intersection(strangers)
    if not left_out:
        return folder, ()
    said = f"not compared: {len(left_out)} tensors that a gguf file leaves out, as {show(min(left_out), quote=True)}"
    return replace(folder, names=dict.fromkeys(name for name in folder if name not in left_out)), (said,)


def _renamed(name: str, renames: Iterable[Rename]) -> str:
    """Give the name by the first rename that means it; its own where none does."""
    return next((new for rename in renames if (new := rename.apply(name)) is not None), name)
