"""Helper for tests behind a proxy: an nginx that shows a server of this machine under a path."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from demo.processes import free_port
from tests.support.batch import wait_until

NGINX = "/usr/sbin/nginx"

CONFIG = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  proxy_set_header Host $host;
  proxy_set_header X-Forwarded-Host $http_host;
  proxy_set_header X-Forwarded-For $remote_addr;
  proxy_set_header X-Forwarded-Proto $scheme;
  server {{ listen 127.0.0.1:{strips}; location {path}/ {{ proxy_pass {url}/; }} }}
  server {{ listen 127.0.0.1:{keeps}; location {path}/ {{ proxy_pass {url}; }} }}
}}
"""


@contextmanager
def run_nginx(url: str, path: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Show a server under a path; yield two addresses: the first proxy strips the path, the second keeps it.

    The test is skipped where nginx is not installed.
    """
    if not Path(NGINX).exists():
        pytest.skip(f"no test behind a proxy: no {NGINX}; apt-get install nginx-light")
    strips, keeps = free_port(), free_port()
    config = folder / "nginx.conf"
    config.write_text(CONFIG.format(folder=folder, strips=strips, keeps=keeps, path=path, url=url))
    with subprocess.Popen(
        [NGINX, "-c", str(config), "-p", str(folder)], stderr=subprocess.DEVNULL
    ) as process:
        try:
            wait_until(lambda: process.poll() is not None or all(map(_listens, (strips, keeps))))
            assert process.returncode is None, (folder / "nginx.log").read_text()
            yield f"http://127.0.0.1:{strips}{path}", f"http://127.0.0.1:{keeps}{path}"
        finally:
            process.terminate()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
