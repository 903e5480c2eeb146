#!/usr/bin/env python3
"""Validates records (JSON lines on standard input) against the OCSF schema that each record names.

Needs the PyPI packages ocsf-json-schema and jsonschema. Each record is checked against its class with its profiles;
beyond the schema: type_uid is class_uid * 100 + activity_id, category_uid is the class's, and `unmapped` is the last
member and `auditor` its last, as the trail's chain needs it.

Exit status: 0 all valid; 1 some are not (reasons on standard error); 2 nothing to read or a package is missing.
"""

import json
import sys

try:
    from jsonschema import Draft202012Validator
    from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema
except ImportError as error:
    print(f"{error}: pip install ocsf-json-schema jsonschema", file=sys.stderr)
    raise SystemExit(2) from error

REASONS_A_RECORD = 5


class Schemas:
    """Validators by OCSF version, class and profiles, built on first use."""

    def __init__(self):
        self.versions = {}
        self.validators = {}

    def validator(self, version, class_uid, profiles):
        key = (version, class_uid, profiles)
        if key not in self.validators:
            if version not in self.versions:
                self.versions[version] = OcsfJsonSchemaEmbedded(get_ocsf_schema(version=version))
            schemas = self.versions[version]
            name = schemas.lookup_class_name_from_uid(class_uid)
            schema = schemas.get_class_schema(name, list(profiles))
            Draft202012Validator.check_schema(schema)
            self.validators[key] = Draft202012Validator(schema)
        return self.validators[key]


def reasons(record, schemas):
    """Yields what is wrong with one record."""
    metadata = record["metadata"]
    profiles = tuple(sorted(metadata.get("profiles", [])))
    validator = schemas.validator(metadata["version"], record["class_uid"], profiles)
    for error in validator.iter_errors(record):
        yield f"{error.json_path}: {error.message[:300]}"
    if record["type_uid"] != record["class_uid"] * 100 + record["activity_id"]:
        yield f"$.type_uid: {record['type_uid']} does not follow from class and activity"
    if record["category_uid"] != record["class_uid"] // 1000:
        yield f"$.category_uid: {record['category_uid']} is not the category of the class"
    if list(record)[-1] != "unmapped" or list(record["unmapped"])[-1] != "auditor":
        yield "$: unmapped.auditor is not the last member"


def main():
    schemas = Schemas()
    seen = {}
    invalid = 0
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            record = json.loads(line)
            found = list(reasons(record, schemas))
            seen[record["class_uid"]] = seen.get(record["class_uid"], 0) + 1
        except (KeyError, TypeError, ValueError) as error:
            found = [f"{type(error).__name__}: {error}"]
        if found:
            invalid += 1
            for reason in found[:REASONS_A_RECORD]:
                print(f"line {number}: {reason}", file=sys.stderr)
    if not seen and not invalid:
        print("no records on standard input", file=sys.stderr)
        return 2
    classes = ", ".join(f"{uid}: {count}" for uid, count in sorted(seen.items()))
    print(f"{sum(seen.values())} records, {invalid} invalid ({classes})")
    return 1 if invalid else 0


if __name__ == "__main__":
    sys.exit(main())
