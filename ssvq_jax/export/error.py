"""The error of files that cannot be read."""


class FormatError(ValueError):
    """A file that is no packed file, or is damaged; names the file and parameter."""
