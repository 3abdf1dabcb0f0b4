"""The `smd` command: one thin module a subcommand, imported when it is used."""
