"""Who may talk to the processes of a Dask cluster: mutual TLS and a token, from the settings."""

from __future__ import annotations

import ssl
from pathlib import Path

from distributed import Security

from batch.executors.handshake import use_token
from contract.errors import DaskError, SettingsError
from contract.settings import Settings


def configure(settings: Settings) -> Security:
    """Return what Client, Scheduler and Worker take as `security`, and demand the token in this process.

    With OVERNIGHT_DASK_TLS_CA, _CERT and _KEY every connection is encrypted, and both ends show a certificate
    of that authority. A certificate's names are not compared with addresses: whoever has a certificate of the
    authority is one of the cluster, so the authority must be the cluster's own.

    Raises
    ------
    SettingsError
        Only some of the three files are set.
    DaskError
        A file cannot be read, or is no certificate or key.
    """
    dask = settings.dask
    use_token(dask.dask_token)
    files = dask.tls_files
    missing = [name for name, path in files.items() if not path]
    if len(missing) == len(files):
        return Security(require_encryption=False)
    if missing:
        raise SettingsError(f"TLS for Dask needs {' and '.join(missing)} too")
    for name, path in files.items():
        try:
            Path(path).read_bytes()
        except OSError as error:
            raise DaskError(f"{name}={path} cannot be read: {error.strerror}") from None
    security = Security(
        require_encryption=True,
        tls_ca_file=dask.dask_tls_ca,
        **{
            f"tls_{role}_{part}": path
            for role in ("client", "scheduler", "worker")
            for part, path in (("cert", dask.dask_tls_cert), ("key", dask.dask_tls_key))
        },
    )
    try:
        # Dask would ask for a key's password on the terminal.
        ssl.create_default_context().load_cert_chain(dask.dask_tls_cert, dask.dask_tls_key, _no_password)
        security.get_connection_args("client")
    except (OSError, ValueError) as error:
        names = ", ".join(f"{name}={path}" for name, path in files.items())
        raise DaskError(f"TLS cannot use {names}: {error}") from None
    return security


def _no_password() -> str:
    raise ValueError("the key has a password; give it one without")
