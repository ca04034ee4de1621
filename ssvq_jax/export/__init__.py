"""The packed file: see FORMAT.md beside this module."""

from ssvq_jax.export.error import FormatError as FormatError
from ssvq_jax.export.file import PackedFile as PackedFile
from ssvq_jax.export.file import load as load
from ssvq_jax.export.saving import save as save
