"""The HTTP API: doors for programs in any language. No rule of money lives here.

routes.py     the one table of operations: docs, validation, scopes and tests come from it
types.py      what requests and answers look like
problems.py   errors, and what each status is in HTTP
keyring.py    API keys; access.py  whose wallets a key may see and move
writes.py, reads.py, ops.py  what the operations do
app.py        one worker's application; server.py  the processes
"""
