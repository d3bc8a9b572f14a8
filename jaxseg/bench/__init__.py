"""One benchmark for the whole zoo: what is measured, what changed between two files of it, and tables of them."""

from jaxseg.bench.compare import Comparison, compare, label
from jaxseg.bench.kernels import KERNELS
from jaxseg.bench.measure import Setting, facts, matmul_rate, measure, without_compilation_cache
from jaxseg.bench.subjects import KernelPrograms, Programs, Subject, subject
from jaxseg.bench.tables import comparison_table, ratio_table, zoo_table

__all__ = [
    "KERNELS",
    "Comparison",
    "KernelPrograms",
    "Programs",
    "Setting",
    "Subject",
    "compare",
    "comparison_table",
    "facts",
    "label",
    "matmul_rate",
    "measure",
    "ratio_table",
    "subject",
    "without_compilation_cache",
    "zoo_table",
]
