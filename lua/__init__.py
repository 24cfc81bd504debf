"""The Lua function library, as package data; engine/library.py assembles it."""
