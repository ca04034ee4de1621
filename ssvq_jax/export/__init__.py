"""The packed file: see FORMAT.md beside this module."""

from ssvq_jax.export.error import FormatError as FormatError
from ssvq_jax.export.file import load as load
from ssvq_jax.export.file import read_metadata as read_metadata
from ssvq_jax.export.file import save as save
