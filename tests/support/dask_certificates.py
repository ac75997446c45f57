"""Certificates for the processes of a Dask cluster."""

from __future__ import annotations

from pathlib import Path

import trustme


def write_certificates(folder: Path) -> dict[str, str]:
    """Write the files of one authority; return `ca`, `cert` and `key` -> path."""
    authority = trustme.CA()
    issued = authority.issue_cert("cluster")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    issued.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    issued.private_key_pem.write_to_path(str(folder / "key.pem"))
    return {name: str(folder / f"{name}.pem") for name in ("ca", "cert", "key")}
