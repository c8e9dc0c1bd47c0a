"""Ending a connection without an answer: what no framework offers, and every network does."""

import socket

from flask import Response, g, request


def hang_up() -> Response:
    """Close the request's connection now; the response that this returns reaches nobody."""
    connection: socket.socket = request.environ["werkzeug.socket"]
    connection.shutdown(socket.SHUT_RDWR)
    g.dropped = True
    return Response(status=500)
