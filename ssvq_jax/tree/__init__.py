"""Codecs mapped over whole parameter trees."""

from ssvq_jax.tree.report import report as report
from ssvq_jax.tree.rules import Rule as Rule
from ssvq_jax.tree.rules import compress as compress
from ssvq_jax.tree.transforms import combine as combine
from ssvq_jax.tree.transforms import decode as decode
from ssvq_jax.tree.transforms import finalize as finalize
from ssvq_jax.tree.transforms import label_tree as label_tree
from ssvq_jax.tree.transforms import partition as partition
