"""A plan as data: every tensor of a conversion, the format it takes, and the verdict.

Knows how formats are spelled and what they weigh. Must not know how formats are chosen, nor how a plan is carried out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from qconvert.calibrated import Calibrated
from qconvert.containers.gguf_types import GGUF_DENSE
from qconvert.containers.gguf_values import KeyValue
from qconvert.dialects import DIALECTS, ggml
from qconvert.dialects.refused import AS_ARRAYS
from qconvert.imatrix import Entry
from qconvert.targets import Target, spell
from qconvert.verdict import ORDER, SAME_BYTES, Verdict
from qconvert.views import Origin, View
from qformat.formats import Format
from qformat.scheme import Opaque
from qformat.store import part_bytes
from qformat.tensor import PackedTensor, format_of


@dataclass(frozen=True, slots=True)
class Item:
    """One tensor of a plan: the source, the format it takes, and the verdict.

    container  : of the target
    others     : formats that would be exact as well
    rule       : by which it is quantized; empty where it is not
    importance : of its columns, for a rule that has a use for it
    by         : method and statistics by which it is quantized; None for a rule alone
    origin     : what it is made of, where it goes by another name than in the source
    home       : container of the source
    nearest    : for one that is not exact, what would work; empty where nothing would, or that was not looked for
    unheld     : the target's name, where that has no format for such a tensor at all; `form` is then the source's
    """

    name: str
    tensor: PackedTensor
    form: Format
    verdict: Verdict
    container: str
    others: tuple[str, ...] = ()
    rule: str = ""
    importance: Entry | None = field(default=None, compare=False, repr=False)
    by: Calibrated | None = field(default=None, compare=False, repr=False)
    origin: Origin | None = None
    home: str = "qfmt"
    nearest: str = ""
    unheld: str = ""

    @property
    def source(self) -> str:
        """The source's format in target spelling."""
        form = format_of(self.tensor)
        return spelled(form, self.home if form.scheme.is_dense else "qfmt")

    @property
    def target(self) -> str:
        """The target's format in target spelling."""
        return self.unheld or spelled(self.form, self.container)

    @property
    def n_bytes(self) -> int:
        """Bytes that the tensor takes in the target."""
        return sum(self.part_bytes().values())

    def part_bytes(self) -> dict[str, int]:
        """Bytes of each part in the target, by role."""
        if self.form.meaning == format_of(self.tensor).meaning:  # blocks that nothing here understands have no other size
            return part_bytes(self.tensor)
        return self.form.part_bytes(self.tensor.shape)


@dataclass(frozen=True, slots=True)
class Plan:
    """All tensors of a conversion, in the source's order.

    view       : the source, by the names that its tensors are to have
    key_values : what a GGUF or `.qfmt` file is to say in place of key-values of the same keys
    unsaid     : how the source's keys begin of which the file is to say nothing
    """

    target: Target
    items: tuple[Item, ...]
    view: View
    key_values: tuple[KeyValue, ...] = ()
    unsaid: tuple[str, ...] = ()

    @property
    def assume(self) -> tuple[str, ...]:
        """What is so of the written files: arrays are as they lie, where none is packed, whatever a name may look like."""
        return () if any(not item.form.scheme.is_dense for item in self.items) else (AS_ARRAYS,)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Logical shapes by name, for files that do not hold them; what is opaque has none."""
        known = (item for item in self.items if not isinstance(item.form.scheme.alphabet, Opaque))
        return {item.name: item.tensor.shape for item in known}

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors in the target, headers and padding aside."""
        return sum(item.n_bytes for item in self.items)

    @property
    def is_unchanged(self) -> bool:
        """Whether every tensor goes over as it is, by its own name."""
        return not self.view.origins and all(item.verdict.verdict == SAME_BYTES for item in self.items)

    def counts(self) -> dict[str, int]:
        """Count the tensors of each verdict, from same-bytes to refused."""
        found = Counter(item.verdict.verdict for item in self.items)
        return {verdict: found[verdict] for verdict in ORDER if found[verdict]}


def spelled(form: Format, container: str) -> str:
    """Name a format in target spelling, by the family that its layout belongs to."""
    if form.scheme.is_dense:
        short = {element: kind for kind, element in GGUF_DENSE.items()}
        return f"{container}:{short.get(form.name, form.name)}"
    if ":" in form.name or form.name in {dialect.name for dialect in DIALECTS}:  # of a dialect, it bears a target's name
        return form.name
    return spell(form, "gguf" if ggml.type_of(form) is not None else container)
