"""The OpenAPI 3.1 document, and `/v1/docs`, which shows it as one page.

`document` makes it from the operations that are served and the models that check and answer them.
`render_page` renders it without a script, and with nothing from another host.
"""

import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from flask import render_template
from markupsafe import Markup, escape
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from config.dialects import load_dialects
from receiver.api.operation import PREFIX, Operation
from receiver.ledger.reports.models import ProblemView, schema_name

Json = dict[str, Any]

REF = "#/components/schemas/"

# Components whose class has another name here. Clients are generated from the document: names stay.
PUBLIC_NAMES = {"SendOutcome": "Outcome"}

# The page has one style sheet, in itself.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"

# 1 to 255 printable ASCII characters, bare or as a structured field string (RFC 8941).
KEY_FORM = r'^([ !#-~][ -~]{0,254}|"([ !#-\[\]-~]|\\["\\]){1,255}")$'

ABOUT = (
    "Look at events and their calls, and act on them."
    " Send `Authorization: Bearer <key>` with one of FIRSTSEEN_API_KEYS."
    " Errors are problem documents (RFC 9457): `type` is stable, `detail` says what happened and what to do."
)

PATH_PARAMETERS: Mapping[str, tuple[str, Json]] = {
    "event": ("The ledger's id of the event, not the provider's.", {"type": "string", "format": "uuid"}),
    "replay": ("The id of the bulk run.", {"type": "string", "format": "uuid"}),
    "call": ("The id of the call.", {"type": "string", "format": "uuid"}),
    "body_hash": ("SHA-256 of the body, in hex.", {"type": "string", "pattern": "^[0-9a-f]{64}$"}),
}


class _Namer(GenerateJsonSchema):
    """Names components as clients know them, whatever their classes are called here."""

    def normalize_name(self, name: str) -> str:
        name = super().normalize_name(name)
        return PUBLIC_NAMES.get(name, name.removesuffix("View"))


def document(operations: Sequence[Operation]) -> Json:
    """Return the document, ready for JSON."""
    paths: dict[str, Json] = {}
    for operation in operations:
        paths.setdefault(PREFIX + operation.path, {})[operation.method.lower()] = _operation(operation)
    key = {"type": "http", "scheme": "bearer", "description": "One of FIRSTSEEN_API_KEYS."}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Firstseen", "version": "1", "description": ABOUT},
        "servers": [{"url": "/"}],
        "security": [{"key": []}],
        "paths": paths,
        "components": {"securitySchemes": {"key": key}, "schemas": _schemas(operations)},
    }


def _operation(operation: Operation) -> Json:
    summary, _, rest = inspect.cleandoc(operation.view.__doc__ or "").partition("\n")
    responses: Json = {}
    for status, shape in operation.answers.items():
        text = " ".join((shape.__doc__ or HTTPStatus(status).phrase).split())
        answer: Json = {"description": text, "content": {"application/json": {"schema": _reference(shape)}}}
        if operation.acts:
            marker = {"description": "`true` on an answer from memory.", "schema": {"const": "true"}}
            answer["headers"] = {"Idempotent-Replayed": marker}
        responses[str(status)] = answer
    refused = {"application/problem+json": {"schema": _reference(ProblemView)}}
    for status in operation.refusals:
        responses[str(status)] = {"description": HTTPStatus(status).phrase, "content": refused}
    found: Json = {
        "operationId": operation.name,
        "summary": summary.rstrip("."),
        "description": " ".join(rest.split()),
        "tags": [operation.path.split("/")[1]],
        "parameters": list(_parameters(operation)),
        "responses": responses,
    }
    if operation.acts and operation.takes:
        required = any(field.is_required() for field in operation.takes.model_fields.values())
        content = {"schema": _reference(operation.takes), "example": operation.example}
        found["requestBody"] = {"required": required, "content": {"application/json": content}}
    return found


def _parameters(operation: Operation) -> Iterable[Json]:
    for name in operation.parameters:
        text, schema = PATH_PARAMETERS[name]
        yield {"name": name, "in": "path", "required": True, "description": text, "schema": schema}
    if operation.acts:
        text = "Sent again with this key within 24 h, the request is answered from memory and does nothing."
        header = load_dialects()["firstseen"].header
        schema = {"type": "string", "pattern": KEY_FORM}
        yield {"name": header, "in": "header", "required": False, "description": text, "schema": schema}
    elif operation.takes:
        schema = operation.takes.model_json_schema(ref_template=REF + "{model}")
        for name, form in schema["properties"].items():
            # A query has no null: what is left out is not there.
            given = [part for part in form.get("anyOf", ()) if part != {"type": "null"}]
            yield {
                "name": name,
                "in": "query",
                "required": name in schema.get("required", ()),
                "description": form.get("description", ""),
                "schema": given[0] if given else {k: form[k] for k in form.keys() - {"title", "description"}},
            }


def _reference(model: type[BaseModel]) -> Json:
    return {"$ref": REF + schema_name(model)}


def _schemas(operations: Iterable[Operation]) -> Json:
    shapes = {shape for one in operations for shape in one.answers.values()} | {ProblemView}
    given = {one.takes for one in operations if one.takes}
    models = [(shape, "serialization") for shape in shapes] + [(model, "validation") for model in given]
    models.sort(key=lambda pair: schema_name(pair[0]))
    _, schemas = models_json_schema(
        models,  # type: ignore[arg-type]
        ref_template=REF + "{model}",
        schema_generator=_Namer,
    )
    found: Json = schemas["$defs"]
    for name in PUBLIC_NAMES.values():
        found[name]["title"] = name
    return found


def render_page(document: Json) -> str:
    """Return the page of an OpenAPI document as `openapi.document` makes it; POLICY is for its header."""
    schemas = document["components"]["schemas"]
    operations = list(_operations(document, schemas))
    shapes = [
        {
            "name": name,
            "about": schema.get("description", ""),
            "form": _form(schema) if "enum" in schema else "",
            "members": _members(_resolved(schema, schemas)),
        }
        for name, schema in schemas.items()
    ]
    return render_template(
        "docs.html", info=document["info"], operations=operations, shapes=shapes, prose=_prose
    )


def _operations(document: Json, schemas: Json) -> Iterator[Json]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json")
            yield {
                **operation,
                "method": method.upper(),
                "path": path,
                "parameters": [{**one, "form": _form(one["schema"])} for one in operation["parameters"]],
                "members": _members(_resolved(body["schema"], schemas)) if body else [],
                "curl": _curl(method, path, body),
                "answers": [
                    {"status": status, "shape": _name(content["schema"])}
                    for status, answer in operation["responses"].items()
                    for content in answer["content"].values()
                ],
            }


def _curl(method: str, path: str, body: Json | None) -> str:
    parts = ["curl", '-H "Authorization: Bearer $KEY"']
    if method == "post":
        parts += ["-X POST", '-H "Idempotency-Key: $(uuidgen)"']
    if body:
        parts.append(f"--json '{json.dumps(body['example'])}'")
    named = re.sub(r"{(\w+)}", lambda name: f"${name[1].upper()}", path)
    return " ".join([*parts, f'"$URL{named}"'])


def _prose(text: str) -> Markup:
    """Return a text with its code between backticks as HTML."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704 - escaped first


def _members(schema: Json) -> list[Json]:
    required = schema.get("required", ())
    return [
        {
            "name": name,
            "form": _form(form),
            "required": name in required,
            "about": form.get("description", ""),
        }
        for name, form in schema.get("properties", {}).items()
    ]


def _resolved(schema: Json, schemas: Json) -> Json:
    found: Json = schemas[_name(schema)] if "$ref" in schema else schema
    return found


def _name(reference: Json) -> str:
    return str(reference["$ref"]).rpartition("/")[2]


def _form(schema: Json) -> str:
    """Write a schema in a few words."""
    match schema:
        case {"$ref": _}:
            return _name(schema)
        case {"anyOf": list(several)}:
            return " or ".join(map(_form, several))
        case {"enum": list(values)}:
            return ", ".join(map(str, values))
        case {"type": "array", "items": dict(items)}:
            return f"list of {_form(items)}"
        case _:
            return str(schema.get("const", schema.get("format", schema.get("type", "any"))))
