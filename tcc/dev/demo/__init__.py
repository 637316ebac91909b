"""`tcc demo`: orders on the real parts, told in short sentences, and each sentence checked.

`shop` speaks to the service as a client would, and reads the gateway's ledger, which is the witness. `scenes` are the
stories, `telling` prints them and counts what came out otherwise, and `play` runs it all on a stack of its own.
"""

from tcc.dev.demo.play import run_demo

__all__ = ["run_demo"]
