"""The file of a closed month's manifest, beside its export."""

from pathlib import Path

from metering.exports.writing import whole
from proxy.cli.output import fail


def manifest_of(export: Path) -> Path:
    """Name the manifest of an export: FILE.manifest.json."""
    return export.with_name(f"{export.name}.manifest.json")


def write_manifest(path: Path, text: str) -> None:
    """Write a manifest whole or not at all."""
    try:
        with whole(path) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        fail(f"--manifest: {str(path)!r} cannot be written: {error.strerror}")
