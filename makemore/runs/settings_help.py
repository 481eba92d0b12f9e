"""List settings for ``makemore models``, and build their JSON schema."""

from __future__ import annotations

from typing import Any

from pydantic import create_model

from makemore.models.catalogue import any_model_config
from makemore.runs.schema import RunConfig

LIMITS = {"minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}"}


def list_settings(model: str) -> list[dict[str, Any]]:
    """Dotted name, default, allowed values and help of each setting of a run of one model.

    Defaults apply without a recipe; a model's recipe sets some values by text and budget. Raises UserError if
    the model is unknown.
    """
    schema = RunConfig.for_model(model).model_json_schema()
    return _list(schema, schema["$defs"], "")


def _list(schema: dict[str, Any], definitions: dict[str, Any], prefix: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name, value in schema["properties"].items():
        inner = definitions.get(value.get("$ref", "").rpartition("/")[2], {})
        if "properties" in inner:
            rows += _list(inner, definitions, f"{prefix}{name}.")
        elif "const" not in value:
            row = {"name": prefix + name, "default": value.get("default")}
            allowed = _allowed(value.get("anyOf", [value])[0])
            rows.append({**row, "allowed": allowed, "help": value.get("description", "")})
    return rows


def _allowed(value: dict[str, Any]) -> str:
    if "enum" in value:
        return ", ".join(value["enum"])
    return ", ".join(text.format(value[key]) for key, text in LIMITS.items() if key in value)


def json_schema() -> dict[str, Any]:
    """JSON schema of a TOML file of settings, for any model that can be trained.

    A section ``model`` must name the model, which tells whose settings it holds.
    """
    run_config = create_model("RunConfig", __base__=RunConfig, model=(any_model_config(), ...))
    schema = run_config.model_json_schema()
    del schema["required"]
    for reference in schema["properties"]["model"]["discriminator"]["mapping"].values():
        schema["$defs"][reference.rpartition("/")[2]]["required"] = ["name"]
    duration = schema["$defs"]["TrainConfig"]["properties"]["max_time"]
    duration["anyOf"].append({"type": "string", "pattern": r"^\s*[\d.]+\s*(s|m|min|h)?\s*$"})
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
