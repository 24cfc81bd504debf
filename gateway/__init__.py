"""How people and programs reach it: command line and embedded servers. No rule of money lives here."""
