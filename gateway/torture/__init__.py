"""Torture: real processes under random load and random faults, and an audit of every answer that was given.

schedule.py says what goes wrong when, faults.py how, world.py has the processes, client.py and load.py are the load,
recorder.py keeps what was asked and answered, audit.py compares it with the ledger, run.py is the whole of it.
"""
