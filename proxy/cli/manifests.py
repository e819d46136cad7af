"""The file of a closed month's manifest, beside its export."""

from pathlib import Path

from proxy.cli.output import fail


def manifest_of(export: Path) -> Path:
    """Name the manifest of an export: FILE.manifest.json."""
    return export.with_name(f"{export.name}.manifest.json")


def write_manifest(path: Path, text: str) -> None:
    """Write a manifest whole or not at all."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        fail(f"--manifest: {str(path)!r} cannot be written: {error.strerror}")
