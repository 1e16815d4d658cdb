# SPDX-License-Identifier: Apache-2.0
"""A web server on this machine, for tests of what talks to one."""

import http.server
import threading


class LocalServer(http.server.ThreadingHTTPServer):
    """Answers on a free port from entering it as a context manager until it is left.

    Args:
        handler: class of the requests' handlers.
    """

    daemon_threads = True

    def __init__(self, handler):
        super().__init__(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        self._thread.start()
        return super().__enter__()

    def __exit__(self, *error):
        self.shutdown()
        self._thread.join()
        super().__exit__(*error)
