"""Starts and ends the loopback server in a process of its own."""

import errno
import http.client
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from clip_data.errors import ClipDataError

HOST = "127.0.0.1"
# A run that is killed and started again finds its old server for a moment.
_OLD_SERVER_S = 1.0
_START_S = 60.0


class LoopbackServer:
    """The demo's HTTP server, as a context manager; it listens on 127.0.0.1 only.

    Serves rendered scenes, or the files below `folder`. The process ends with the context, and also when this process
    is killed. Port 0 picks a free one; `port` and `base_url` hold what is in use once the context is entered.

    Raises ClipDataError when the port is in use or not allowed, when `folder` does not exist, or when the server does
    not start.
    """

    def __init__(self, port: int = 8765, folder: str | os.PathLike[str] | None = None) -> None:
        if not 0 <= port <= 65535:
            raise ClipDataError(f"there is no port {port}: choose one from 1024 to 65535 with --input.port")
        if folder is not None and not Path(folder).is_dir():
            raise ClipDataError(f"cannot serve {os.fspath(folder)}: no such folder")
        self.port = port
        self.folder = None if folder is None else Path(folder).resolve()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def base_url(self) -> str:
        """What the URLs of the table start with, without a slash at the end."""
        return f"http://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """The server's process id; only inside the context."""
        assert self._process is not None, "the server runs inside the context only"
        return self._process.pid

    def __enter__(self) -> "LoopbackServer":
        # Bound here, so that a port in use is this process's own error and early requests wait in the queue.
        with _listen(self.port) as listener:
            self.port = listener.getsockname()[1]
            # -P: a file of the working directory must not stand in for a module.
            command = [sys.executable, "-P", "-m", "clip_data.demo.server", str(listener.fileno()), str(os.getpid())]
            command += [str(self.folder)] if self.folder else []
            # A session of its own: Ctrl-C in the terminal reaches the run, which then ends the server.
            self._process = subprocess.Popen(
                command, pass_fds=[listener.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
            )
        try:
            connection = http.client.HTTPConnection(HOST, self.port, timeout=_START_S)
            connection.request("GET", "/")
            connection.getresponse().read()
            connection.close()
        except BaseException as error:
            self.__exit__()
            if not isinstance(error, OSError | http.client.HTTPException):
                raise
            problem = f"the server on port {self.port} does not answer ({error})"
            raise ClipDataError(f"{problem}: see its output above") from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None


def _listen(port: int) -> socket.socket:
    give_up = time.monotonic() + _OLD_SERVER_S
    while True:
        try:
            return socket.create_server((HOST, port), backlog=1024)
        except OSError as error:
            in_use = error.errno == errno.EADDRINUSE
            if not in_use or time.monotonic() > give_up:
                found = f"port {port} is in use" if in_use else f"cannot listen on port {port}, {error.strerror}"
                raise ClipDataError(f"{found}: choose another with --input.port") from error
            time.sleep(0.05)
