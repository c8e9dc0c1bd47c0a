"""`/v1/docs`: the document as one page, made here: no script, and nothing from another host."""

import json
import re
from collections.abc import Iterator
from typing import Any

from flask import Response, make_response, render_template
from markupsafe import Markup, escape

Json = dict[str, Any]
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def render_page(document: Json) -> Response:
    """Return the page of an OpenAPI document as `openapi.document` makes it."""
    schemas = document["components"]["schemas"]
    operations = list(_operations(document, schemas))
    shapes = [_shape(name, schema, schemas) for name, schema in schemas.items()]
    page = render_template(
        "docs.html", info=document["info"], operations=operations, shapes=shapes, prose=_prose
    )
    response = make_response(page)
    response.headers["Content-Security-Policy"] = POLICY
    return response


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
                "answers": [_answered(*answer) for answer in operation["responses"].items()],
            }


def _answered(status: str, answer: Json) -> Json:
    (content,) = answer["content"].values()
    return {"status": status, "shape": content["schema"]["$ref"].rpartition("/")[2]}


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


def _shape(name: str, schema: Json, schemas: Json) -> Json:
    resolved = _resolved(schema, schemas)
    about = {"about": schema.get("description", ""), "form": _form(schema) if "enum" in schema else ""}
    return {"name": name, **about, "members": _members(resolved)}


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
    found: Json = schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    return found


def _form(schema: Json) -> str:
    """Write a schema in a few words."""
    match schema:
        case {"$ref": str(reference)}:
            return reference.rpartition("/")[2]
        case {"anyOf": list(several)}:
            return " or ".join(map(_form, several))
        case {"enum": list(values)}:
            return ", ".join(map(str, values))
        case {"type": "array", "items": dict(items)}:
            return f"list of {_form(items)}"
        case _:
            return str(schema.get("const", schema.get("format", schema.get("type", "any"))))
