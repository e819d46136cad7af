"""Trim the released model of FOCUS 1.2 to what a judge needs: `python -m tests.kits.focus_trim SDIST > FILE`.

SDIST is the source distribution of focus-validator 2.2.1, as its registry has it.
"""

import hashlib
import json
import sys
import tarfile
from pathlib import Path

ROOT = "focus_validator-2.2.1"
MODEL = "focus_validator/rules/model-1.2.0.1.json"
SHA256 = "639b302ace9edd05922e3d15fcedf62723c92e7cf25e0a7a6684dd4fd4076fec"

SPECIFICATION = "FOCUS 1.2, CC-BY-4.0, Joint Development Foundation Projects"

OF_RULE = ("Reference", "EntityType", "Function", "Type", "ApplicabilityCriteria")
OF_CRITERIA = ("Keyword", "MustSatisfy", "Requirement", "Condition")


def trimmed(model: bytes, license_text: str) -> str:
    """Write a rule a line, without what is empty or tells a judge nothing. Raises ValueError for another model."""
    if hashlib.sha256(model).hexdigest() != SHA256:
        raise ValueError(f"This is not the {MODEL} of {ROOT}: its SHA-256 is another.")
    rules = json.loads(model)["ModelRules"]
    lines = []
    for rule_id, rule in rules.items():
        fields = {name: rule[name] for name in OF_RULE} | {
            name: rule["ValidationCriteria"][name] for name in OF_CRITERIA
        }
        lines.append(f"{json.dumps(rule_id)}:{_line({name: value for name, value in fields.items() if value})}")
    header = {"Source": f"{ROOT}: {MODEL}", "SHA-256": SHA256, "Specification": SPECIFICATION, "License": license_text}
    return f'{{"Header":{_line(header)},\n"ModelRules":{{\n' + ",\n".join(lines) + "\n}}\n"


def _line(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _main(path: Path) -> None:
    with tarfile.open(path) as files:
        model, license_text = (files.extractfile(f"{ROOT}/{name}") for name in (MODEL, "LICENSE"))
        if model is None or license_text is None:
            raise ValueError(f"{path} has no {MODEL}, or no LICENSE.")
        sys.stdout.write(trimmed(model.read(), license_text.read().decode()))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
