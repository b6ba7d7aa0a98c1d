"""HTTP on the wire: uvicorn's, except that bytes which are no HTTP are refused in our shape of an error too.

Such a request reaches no application: uvicorn itself answers it, by default in text/plain.
"""

import secrets

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.problems import MEDIA_TYPE, InvalidRequest, content


class Http(HttpToolsProtocol):
    """httptools' parser is C; the other one that uvicorn has takes ten times as long."""

    def send_400_response(self, msg: str) -> None:
        """Status 400, which stands for the protocol; 422 is for what came over it."""
        identity = secrets.token_hex(8)
        problem = InvalidRequest(
            "The bytes are no HTTP/1.1 request that can be read; check the method, the URL and the headers."
        )
        body = content(problem, identity, status=400)
        head = (
            "HTTP/1.1 400 Bad Request\r\n"
            f"content-type: {MEDIA_TYPE}\r\n"
            f"content-length: {len(body)}\r\n"
            f"x-request-id: {identity}\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
