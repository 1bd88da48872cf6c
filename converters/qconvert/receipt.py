"""A receipt: what was asked, what was decided, and digests of what went in and came out; enough to derive it all anew.

A receipt is made by one function of a plan and of the files as they lie on the disk, so that checking one is making it again.
Whatever stands in it otherwise than it is made anew is a difference.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from blake3 import blake3

from qconvert import opening
from qconvert.containers.strict_json import finite, parse_json
from qconvert.digest import digest_all, digest_file, digest_named
from qconvert.items import Plan
from qconvert.naming import as_wanted
from qconvert.planning import make_plan, notices
from qconvert.prove import prove
from qconvert.report import describe_item, totals, worse
from qconvert.targets import find_target
from qformat.errors import FileError, NotExact, UsageError
from qformat.file.hidden import Hidden, explain, sync
from qformat.model import Model
from qformat.scheme import Opaque

SCHEMA = "qfmt.receipt/1"
FOLDER, FILE = Path("folder"), Path("file.safetensors")
MAX_BYTES = 1 << 28  # of a receipt: that of 100 000 tensors has a quarter
MISSING = object()


@dataclass(frozen=True, slots=True)
class Asked:
    """What a conversion was asked for: with the source, all that decides a plan.

    target    : as `qfmt` spells it
    keeps     : whether dense tensors stay as they are, as where a suffix alone named the target
    is_folder : whether files lie in a folder
    allow     : the worst verdict that was let pass
    names     : by which tensors went into the target
    assume    : what was taken for true of the source
    shapes    : of weights whose files do not hold them
    like      : identity of the reference whose names were taken; None without one
    """

    target: str
    keeps: bool
    is_folder: bool
    allow: str
    names: str
    assume: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    like: Mapping[str, Any] | None = None

    @property
    def place(self) -> Path:
        """A destination of the kind that was asked for."""
        return FOLDER if self.is_folder else FILE

    def describe(self) -> dict[str, Any]:
        """Give it as a receipt holds it."""
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        return {
            "target": self.target, "keeps": self.keeps, "is_folder": self.is_folder, "allow": self.allow,
            "names": self.names, "assume": list(self.assume), "shapes": shapes, "like": self.like,
        }  # fmt: skip


def make_receipt(asked: Asked, plan: Plan, source: Model, written: Model) -> dict[str, Any]:
    """Make the receipt of a conversion.

    source  : by its own names
    written : the finished files, opened anew

    returns: what the JSON file holds: of every tensor its line of the plan, the value digest of the source's and, as
             "written", of the written one; null where blocks are copied that nothing here can decode

    Raises QFormatError naming the tensor where a value cannot be read.
    """
    known = [item for item in plan.items if not isinstance(item.tensor.scheme.alphabet, Opaque)]
    digests = digest_named(((item.name, item.tensor) for item in known), source.path)
    changed = (item.name for item in known if not item.verdict.is_exact)
    made = digests | digest_named(((name, written[name]) for name in changed), written.path)
    lines = []
    for item in plan.items:
        of_values: dict[str, str | None] = {"digest": None, "written": None}
        if item.name in digests:
            of_values = {"digest": digests[item.name].hex(), "written": made[item.name].hex()}
        lines.append({**describe_item(replace(item, nearest="")), **of_values})
    facts = {
        "schema": SCHEMA,
        "asked": asked.describe(),
        "source": fingerprint(source),
        "output": fingerprint(written, asked.is_folder),
        "tensors": lines,
        "totals": totals(plan),
        "notices": list(notices(plan)),
        "digest": digest_all(digests).hex(),
        "written": digest_all(made).hex(),
    }
    found: dict[str, Any] = finite(facts)
    return {**found, "receipt": own_digest(found)}


def own_digest(facts: Mapping[str, Any]) -> str:
    """Give the digest of what a receipt says beside it."""
    said = {key: value for key, value in facts.items() if key != "receipt"}
    return blake3(json.dumps(said, sort_keys=True).encode()).hexdigest()


def write_receipt(path: Path, facts: Mapping[str, Any]) -> Hidden:
    """Write a receipt, durable under a hidden name, which is the caller's to commit or to abort.

    Raises FileError when the file system refuses.
    """
    hidden = Hidden(path)
    try:
        with explain(path):
            hidden.place.write_text(json.dumps(facts, indent=1) + "\n")
            sync(hidden.place)
    except BaseException:
        hidden.abort()
        raise
    return hidden


def read_receipt(path: Path) -> tuple[Asked, Mapping[str, Any]]:
    """Read a receipt: what was asked, and the whole. Raises FileError for what is none."""
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise FileError(f"a receipt of more than {MAX_BYTES} bytes", path=path, expected=MAX_BYTES)
    facts = parse_json(data, path=path, what="receipt")
    if not isinstance(facts, dict) or facts.get("schema") != SCHEMA:
        found = facts.get("schema") if isinstance(facts, dict) else None
        raise FileError(f"schema {found!r}, expected '{SCHEMA}'", path=path, field="schema", expected=SCHEMA, found=found)
    asked = facts.get("asked")
    if not isinstance(asked, dict):
        raise FileError("does not say what was asked", path=path, field="asked")

    def said(key: str, kind: Callable[[Any], bool], expected: str) -> Any:
        if not kind(asked.get(key)):
            message = f"'{key}' is {asked.get(key)!r}, expected {expected}"
            raise FileError(message, path=path, field="asked", expected=expected, found=asked.get(key))
        return asked[key]

    def is_text(value: Any) -> bool:
        return isinstance(value, str)

    def are_texts(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(word, str) for word in value)

    def is_size(value: Any) -> bool:
        return type(value) is int and value >= 0

    def are_shapes(value: Any) -> bool:
        return isinstance(value, dict) and all(isinstance(shape, list) and all(map(is_size, shape)) for shape in value.values())

    words = {key: said(key, is_text, "text") for key in ("target", "allow", "names")}
    flags = {key: said(key, lambda value: isinstance(value, bool), "true or false") for key in ("keeps", "is_folder")}
    shapes = {name: tuple(shape) for name, shape in said("shapes", are_shapes, "sizes by name").items()}
    like = said("like", lambda value: value is None or isinstance(value, dict), "the identity of a file, or null")
    return Asked(**words, **flags, assume=tuple(said("assume", are_texts, "a list of words")), shapes=shapes, like=like), facts


def check_receipt(path: Path, written: Path, source: str | Path, like: str | Path | None = None) -> tuple[int, bool]:
    """Derive a receipt anew from the source and the written files, prove the files, and compare.

    path    : of the receipt
    like    : the reference, where names were taken from one
    returns : tensors compared, and whether the written files hold digests

    Raises NotExact naming the first thing that the receipt says otherwise, or the first tensor that is not what its verdict
    says; FileError for what is no receipt, UsageError for a reference that is missing or too many.
    """
    asked, facts = read_receipt(path)
    _expect(path, facts, {"receipt": own_digest(facts)}, "receipt")
    target = replace(find_target(asked.target), keeps=asked.keeps)
    if (like is None) != (asked.like is None):
        words = "without a reference, but one was" if asked.like is None else "with a reference, which has to be"
        raise UsageError(f"made {words} given", path=path, field="like")
    with opening.open(source, True, asked.assume, asked.shapes) as model, opening.opened(like, asked.assume) as reference:
        model.verify()
        _expect(path, facts, {"source": fingerprint(model)}, "source")
        asked = replace(asked, like=identity(reference))
        _expect(path, facts, {"asked": asked.describe()}, "asked")
        view = as_wanted(model, target, asked.place, asked.names, reference)
        plan = make_plan(view, target, allow=asked.allow)
        for item in plan.items:
            if worse(item.verdict.verdict, asked.allow):
                message = f"{item.verdict.verdict}, the receipt allows {asked.allow} alone"
                raise NotExact(message, path=path, tensor=item.name, field="allow", expected=asked.allow)
        with opening.open(written, assume=plan.assume, shapes=plan.shapes) as found:
            has_digests = found.verify()
            _expect(path, facts, {"output": fingerprint(found, asked.is_folder)}, "output")
            prove(plan, found, lambda n_bytes: None)
            made = make_receipt(asked, plan, model, found)
            for key in dict.fromkeys((*made, *facts)):
                if key != "receipt":
                    _expect(path, facts, made, key)
    return len(plan.items), has_digests


def fingerprint(model: Model, is_whole: bool = True) -> dict[str, Any]:
    """Give length and BLAKE3 of the files that hold a model's weights, and of those beside them by their names.

    is_whole : whether what lies beside belongs to the model; where files are not in a folder of their own, anything may
    """
    files = []
    for path in model.files or (model.path,):
        files.append({"n_bytes": path.stat().st_size, "blake3": digest_file(path)})
    return {
        "container": model.container,
        "files": files,
        "assets": {n: blake3(a()).hexdigest() for n, a in model.assets.items()} if is_whole else {},
    }


def identity(reference: Model | None) -> dict[str, Any] | None:
    """Give the fingerprint of a reference; None without one."""
    return None if reference is None else fingerprint(reference)


def _expect(path: Path, facts: Mapping[str, Any], made: Mapping[str, Any], key: str) -> None:
    """Refuse a receipt of which a part is not as it is made anew."""
    for place, said, found in differences(facts.get(key, MISSING), made.get(key, MISSING), key):
        tensor = _tensor_of(facts, place)
        message = f"{place}: the receipt says {_spoken(said)}, found {_spoken(found)}"
        raise NotExact(message, path=path, tensor=tensor, field=key, found=_spoken(found), expected=_spoken(said))


def differences(said: Any, found: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    """Walk over where two JSON values differ: place, one, other."""
    if isinstance(said, dict) and isinstance(found, dict):
        for key in dict.fromkeys((*said, *found)):
            yield from differences(said.get(key, MISSING), found.get(key, MISSING), f"{place}.{key}")
    elif isinstance(said, list) and isinstance(found, list):
        pairs: Sequence[tuple[Any, Any]] = list(zip(said, found, strict=False))
        for number, (one, other) in enumerate(pairs):
            yield from differences(one, other, f"{place}[{number}]")
        if len(said) != len(found):
            yield f"{place} (how many)", len(said), len(found)
    elif type(said) is not type(found) or said != found:
        yield place, said, found


def _spoken(value: Any) -> str:
    return "nothing" if value is MISSING else json.dumps(value)


def _tensor_of(facts: Mapping[str, Any], place: str) -> str | None:
    """Name the tensor whose line of a receipt a place is in."""
    if not place.startswith("tensors["):
        return None
    line = facts["tensors"][int(place[len("tensors[") : place.index("]")])]
    name = line.get("name") if isinstance(line, dict) else None
    return name if isinstance(name, str) else None
