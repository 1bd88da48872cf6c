"""AWQ: 4-bit codes and integer zero points, in the order of three generations of kernels.

    gemm       eight neighbouring rows of a column in a word, even rows in its low half; zero points likewise
    gemv       eight neighbouring columns of a row in a word; groups filled up to whole runs of words
    gemv-fast  four rows by 64 columns in a block, columns shuffled; zero points are stored times minus the scale, and the
               part that holds them here is what was recovered

Source: casper-hansen/AutoAWQ 0.2.9: awq/modules/linear/gemm.py, gemv.py, gemv_fast.py, awq/utils/packing_utils.py.
"""

from qformat.bits import DTYPES
from qformat.formats.form import Format, PartForm, scalar
from qformat.layout import Bits, Field, Layout, Plane
from qformat.scheme import Grid, Integers, Op, Param, Ref, Scheme, Step
from qformat.tiling import ROWS, Tiling

KINDS = ("gemm", "gemv")
BITS = 4
FIELDS = 8  # of a word
INTERLEAVED = "j=4 p=2 -> p j"  # field i holds row 0, 2, 4, 6, 1, 3, 5, 7 of eight
SHUFFLED = "n=4 h=2 a=4 b=4 c=2 -> n h b c a"  # by row: pairs of columns dealt out to the runs of 8, and these parted
BLOCK_ROWS, BLOCK_COLS = 4, 64
ACROSS = Tiling("k nb | n -> (nb n) k")
ACROSS_GROUPS = Tiling("g nb | n -> (nb n) g")
BY_GROUP = Tiling("g n | i -> n (g i)")
BLOCKS = Tiling("nb kb | n=4 k -> (nb n) (kb k)")
PADDED_GROUPS = Tiling("gb w*2 n | g -> n (gb g)")
STEPS = (Step(Op.SUB, Ref("zeros")), Step(Op.MUL, Ref("scales")))


def gemm(group: int, dtype: str = "float16") -> Format:
    """Make the format of GEMM kernels; `group` columns share a scale of type `dtype`, 0: all."""
    codes, zeros = (_word(f"awq_gemm_{holds}", holds, INTERLEAVED) for holds in ("codes", "zeros"))
    scales = PartForm("scales", scalar(dtype, DTYPES[dtype].bits // 8, "scales"), BY_GROUP)
    parts = (PartForm("codes", codes, ACROSS), PartForm("zeros", zeros, ACROSS_GROUPS), scales)
    return _format("awq:gemm", group, dtype, parts)


def gemv(group: int, n_words: int) -> Format:
    """Make the format of GEMV kernels; groups as in `gemm`, filled up to a multiple of what `n_words` words hold."""
    parts = (
        PartForm("codes", _word("awq_gemv_codes", "codes")),
        PartForm("zeros", _word(f"awq_gemv_zeros_x{FIELDS * n_words}", "zeros", n_words=n_words)),
        PartForm("scales", _padded_scales(n_words)),
    )
    return _format("awq:gemv", group, "float16", parts)


def gemv_fast(group: int, n_words: int) -> Format:
    """Make the format of fast GEMV kernels, as `gemv`; zero points as they were recovered."""
    n_weights = BLOCK_ROWS * BLOCK_COLS
    codes = Bits("codes", (Plane(0, BITS, SHUFFLED, word=2),), n_weights, holds="codes")
    parts = (
        PartForm("codes", Layout("awq_gemv_fast_codes", n_weights, n_weights * BITS // 8, (codes,)), BLOCKS),
        PartForm("zeros", scalar("uint8", 1, "zeros"), ROWS),
        PartForm("scales", _padded_scales(n_words), PADDED_GROUPS),
    )
    return _format("awq:gemv_fast", group, "float16", parts)


def _format(name: str, group: int, dtype: str, parts: tuple[PartForm, ...]) -> Format:
    over = Grid(1, group)
    params = (Param("scales", dtype, over), Param("zeros", "uint8", over))
    return Format(name, Scheme(name, Integers(0, (1 << BITS) - 1), params, STEPS), parts)


def _padded_scales(n_words: int) -> Layout:
    """Declare a whole run of scales, as many as zero points in `n_words` words."""
    count = FIELDS * n_words
    return Layout(f"float16_x{count}", 0, 2 * count, (Field("scales", 0, "float16", count, "scales"),))


def _word(name: str, holds: str, order: str = "", n_words: int = 1) -> Layout:
    """Declare words of eight fields."""
    field = Bits("fields", (Plane(0, BITS, order, word=4),), FIELDS * n_words, holds=holds)
    return Layout(name, FIELDS if holds == "codes" else 0, 4 * n_words, (field,))


DIALECT = (gemm(128), gemv(128, 1), gemv_fast(128, 1))
